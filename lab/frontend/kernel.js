// What a widget does when its kernel is gone: it keeps what it shows, and says how to make it live again.

export const GONE = "The kernel is gone. Run this cell again to make it live.";

/** The kernel behind a widget's model. Jupyter tells a model once that its kernel was restarted; it never comes back. */
export class Kernel {
  gone = false;

  constructor(model, react) {
    this.model = model;
    this.heard = () => {
      this.gone = true;
      react();
    };
    model.on("comm_live_update", this.heard);
  }

  close() {
    this.model.off("comm_live_update", this.heard);
  }
}
