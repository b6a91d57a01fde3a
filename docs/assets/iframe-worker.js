// Search runs in a worker, which browsers refuse to pages opened from the file system. There, this
// one runs the worker's script in a hidden frame instead; elsewhere it changes nothing.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow;
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inner.importScripts = (...sources) =>
        sources.reduce(
          (before, source) => before.then(() => this.#load(inner, new URL(source, url).href)),
          Promise.resolve(),
        );
      this.inner = inner;
      this.loaded = this.#load(inner, new URL(url, location.href).href);
    }

    #load(inner, source) {
      return new Promise((resolve, reject) => {
        const script = inner.document.createElement("script");
        script.src = source;
        script.onload = resolve;
        script.onerror = reject;
        inner.document.body.append(script);
      });
    }

    postMessage(data) {
      this.loaded.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.inner.frameElement.remove();
    }
  };
}
