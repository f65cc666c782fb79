// Two things that the theme's search lacks; loaded before the theme's own script.
(function () {
  // The type of the message with which the theme asks its worker for a query.
  const QUERY = 2;

  // Options are looked for as they are typed, `--layer-bits`, but the search reads leading hyphens as "not this word". In quotes, all words
  // of a name must be on a page.
  function optionsAsWords(message) {
    if (!message || message.type !== QUERY || typeof message.data !== "string") return message;
    const words = (_, before, name) => `${before}"${name.replaceAll("-", " ")}"`;
    return { ...message, data: message.data.replace(/(^|\s)--?(\w+(?:-\w+)*)-?/g, words) };
  }

  // Browsers refuse workers to pages opened from disk; the worker's script runs in a hidden frame instead. The theme looks for the name.
  class IFrameWorker extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      const inside = frame.contentWindow;
      // What a worker has and a frame has not. importScripts returns a promise, for which the theme's script waits.
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = (...scripts) =>
        scripts.reduce((before, script) => before.then(() => load(inside, script)), Promise.resolve());
      this.inside = inside;
      this.ready = load(inside, new URL(address, location.href).href);
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  }

  function load(inside, address) {
    return new Promise((resolve, reject) => {
      const script = inside.document.createElement("script");
      script.src = address;
      script.onload = resolve;
      script.onerror = () => reject(new Error("cannot load " + address));
      inside.document.body.appendChild(script);
    });
  }

  if (location.protocol === "file:") window.IFrameWorker = window.Worker = IFrameWorker;
  const send = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (message, ...more) {
    return send.call(this, optionsAsWords(message), ...more);
  };
})();
