// What a widget does when its kernel is gone: it keeps what it shows, and says how to make it live again.

export const GONE = "The kernel is gone. Run this cell again to make it live.";

/**
 * The kernel behind a widget's model; what a widget asks of it is sent here. It is gone for good once it was restarted,
 * of which Jupyter tells the model, or shut down, of which JupyterLab tells those who hold the kernel. Where nobody
 * tells, what cannot be sent does.
 */
export class Kernel {
  gone = false;

  constructor(model, react) {
    this.model = model;
    this.heard = () => {
      if (this.gone) return;
      this.gone = true;
      react();
    };
    model.on("comm_live_update", this.heard);
    this.disposed = model.widget_manager?.kernel?.disposed;
    this.disposed?.connect(this.heard);
  }

  send(message) {
    if (this.gone) return; // the widget says so
    try {
      this.model.send(message);
    } catch {
      this.heard();
    }
  }

  close() {
    this.model.off("comm_live_update", this.heard);
    this.disposed?.disconnect(this.heard);
  }
}
