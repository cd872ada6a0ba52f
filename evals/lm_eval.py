"""After this import lm-eval knows the models `dgemma`, `dgemma-ar` and `dgemma-spec` and the tasks `dgemma_…`:

import lm_eval
import dgemma_evals.lm_eval

lm_eval.simple_evaluate(
    model="dgemma", model_args="pretrained=nano", tasks=["dgemma_nano_json"], limit=20, apply_chat_template=True
)
"""

from dgemma_evals.harness.register import register

register()
