// What a widget does when its kernel is gone: it keeps what it shows, and says how to make it live again.

export const GONE = "The kernel is gone. Run this cell again to make it live.";

/** Calls `react` whenever the kernel may have gone or come back; returns a function that stops that. */
export function watchKernel(model, react) {
  const later = () => setTimeout(react); // JupyterLab marks the view after this event
  model.on("comm_live_update", later);
  return () => model.off("comm_live_update", later);
}

/** Whether the kernel behind the view of a node is gone, as JupyterLab marks it. */
export const kernelGone = (node) => node.closest(".jupyter-widgets-disconnected") !== null;
