// What keeps the page live: the event stream, which comes back after any refusal, and the polling of /status.
// A hidden tab has neither: a browser has six connections to one address, for all of its tabs together.

// A request that is not answered within this time has failed.
export const ANSWER_MS = 10_000;

const FIRST_PAUSE_MS = 1000;
const MOST_PAUSE_MS = 30_000;

export class EventStream {
  // handlers: name of an event -> what to do with its data; opened, lost: told of the stream itself
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
      // After an answer that is no stream, such as 429 or 502, a browser does not try again by itself.
      if (source.readyState !== EventSource.CLOSED) return;
      this.timer = setTimeout(() => this.open(), this.pause * (0.75 + Math.random() / 2));
      this.pause = Math.min(2 * this.pause, MOST_PAUSE_MS);
    };
    for (const [name, act] of Object.entries(this.handlers)) source.addEventListener(name, (event) => act(JSON.parse(event.data)));
  }

  close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }
}

// Call `work` now and again, one after the other, while the tab is visible; `shown` and `hidden` at each change.
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
