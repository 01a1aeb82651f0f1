// Keeps the page up to date: the event stream, which reconnects after every failure, and the polling of /status.
// A hidden tab stops both, since all tabs of a browser share six connections to one address.

// Timeout of a request.
export const ANSWER_MS = 10_000;

const FIRST_PAUSE_MS = 1000;
const MAX_PAUSE_MS = 30_000;

export class EventStream {
  // handlers: name of an event -> function of its data; opened, lost: called when the stream opens or fails
  constructor(handlers, { opened, lost }) {
    Object.assign(this, { handlers, opened, lost, source: null, timer: null, pause: FIRST_PAUSE_MS });
  }

  open() {
    this.close();
    const source = new EventSource('/events');
    this.source = source;
    source.onopen = () => {
      this.pause = FIRST_PAUSE_MS;
      this.opened();
    };
    source.onerror = () => {
      this.lost();
      // After a response that is not a stream, such as 429 or 502, the browser does not reconnect by itself.
      if (source.readyState !== EventSource.CLOSED) return;
      this.timer = setTimeout(() => this.open(), this.pause * (0.75 + Math.random() / 2));
      this.pause = Math.min(2 * this.pause, MAX_PAUSE_MS);
    };
    for (const [name, act] of Object.entries(this.handlers)) source.addEventListener(name, (event) => act(JSON.parse(event.data)));
  }

  close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }
}

// Calls `work` periodically while the tab is visible, never twice at once; calls `shown` or `hidden` at each change.
export function whileVisible(work, everyMs, { shown, hidden }) {
  let timer = null;
  let turn = 0;
  const loop = async (mine) => {
    await work();
    if (mine === turn && !document.hidden) timer = setTimeout(loop, everyMs, mine);
  };
  const changed = () => {
    turn += 1;
    clearTimeout(timer);
    if (document.hidden) return hidden();
    shown();
    return loop(turn);
  };
  document.addEventListener('visibilitychange', changed);
  changed();
}
