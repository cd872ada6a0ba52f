"""From prompts to texts: the convenient ways to drain a loop, and the settings of each mode."""

from dgemma_core.generation.chat import Chat as Chat
from dgemma_core.generation.decide import Decision as Decision
from dgemma_core.generation.decide import decide as decide
from dgemma_core.generation.settings import MODES as MODES
from dgemma_core.generation.settings import AutoregressiveSettings as AutoregressiveSettings
from dgemma_core.generation.settings import DiffusionSettings as DiffusionSettings
from dgemma_core.generation.settings import ModeSettings as ModeSettings
from dgemma_core.generation.settings import SpeculativeSettings as SpeculativeSettings
from dgemma_core.generation.settings import settings_from as settings_from
from dgemma_core.generation.writing import Generation as Generation
from dgemma_core.generation.writing import Prompt as Prompt
from dgemma_core.generation.writing import drain as drain
from dgemma_core.generation.writing import generate as generate
from dgemma_core.generation.writing import prompt_ids as prompt_ids
