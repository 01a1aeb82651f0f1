// The operator's part: what was ordered and what is so, the kill switch in the header, and the dialogs.
import { $, setText } from './dom.js';
import { clock, number, SIDES } from './format.js';
import { ANSWER_MS } from './live.js';

const SECOND_WAY = 'On the host of the trader, ./run kill stops it without this page.';
const EXPLAINED = {
  '/training/pause': 'The trainer stops learning; self-play goes on until it waits for the trainer.',
  '/training/resume': 'The trainer learns on.',
  '/trader/kill': 'The open position is closed and trading stops, also after a restart, until it is resumed.',
  '/trader/resume': 'The kill switch is lifted and the trader may enter positions again.',
};

let latest = null;
let done = () => {};

// Green only for a part that says it runs as ordered, and about which nothing is wrong.
function tone({ state, confirmed, summary }, wrong) {
  if (state === 'unknown' || confirmed === false || wrong) return 'warn';
  if (state !== 'running') return 'bad';
  return summary === 'running' ? 'good' : 'warn';
}

export function drawOperator(status, whenDone) {
  latest = status;
  done = whenDone;
  const about = (...sources) => status.alerts.some((a) => sources.includes(a.source));
  drawControl('training', status.training, about('trainer', 'redis'), ['Pause training', '/training/pause', '']);
  drawControl('trader', status.trader, about('trader', 'broker', 'redis'), null);
  drawKill(status);
}

function drawControl(name, control, wrong, running) {
  const pill = $(`${name}-state`);
  setText(pill, control.summary);
  pill.className = `pill ${tone(control, wrong)}`;
  // A kill file outranks every order: there is nothing that the page could resume.
  const stopped = !control.killed_by_file && (control.state === 'killed' || control.state === 'paused' || (control.order && control.order.state !== 'running'));
  const path = name === 'trader' ? '/trader/resume' : '/training/resume';
  const [label, to, kind] = stopped ? [name === 'trader' ? 'Resume trading' : 'Resume training', path, 'primary'] : running ?? [];
  const button = $(`${name}-switch`);
  button.hidden = !label;
  if (!label) return;
  setText(button, label);
  button.className = kind;
  allow(button);
  button.onclick = () => ask({ title: label, text: EXPLAINED[to], path: to, reason: true });
}

function drawKill({ redis, trader, changes_allowed: allowed }) {
  const button = $('kill');
  const killed = trader.order?.state === 'killed' || trader.state === 'killed';
  setText(button, !killed ? 'Kill switch' : trader.state === 'killed' && trader.confirmed ? 'Killed' : 'Kill sent');
  button.title = trader.summary;
  allow(button);
  setText($('kill-why'), !allowed ? `Changes over HTTP are off: no API key is set (MM_GATEWAY__API_KEY). ${SECOND_WAY}`
    : redis === 'away' ? `Redis is away: the kill switch here does not reach the trader. ${SECOND_WAY}` : '');
}
$('kill').onclick = () => ask({ title: 'Kill switch', text: EXPLAINED['/trader/kill'], facts: latest ? position(latest) : 'Position: not known.', path: '/trader/kill', danger: true, reason: true });

export function allow(button) {
  button.disabled = latest?.changes_allowed === false;
  if (button.disabled) button.title = 'changes over HTTP are off: no API key is set';
}

// What a kill would close, by the trader's own word.
function position({ redis, trader }) {
  const { side, pnl_pips: pnl, units } = trader.detail;
  const held = side === undefined || side === null ? 'Position: not known.'
    : `Position: ${SIDES[side]}${side ? ` ${number(Math.abs(units ?? 0), 0)} units, open pnl ${number(pnl, 1)} pips` : ''}, as the trader said at ${clock(trader.heard_at)}.`;
  return redis === 'away' ? `${held} Redis is away: this order does not reach the trader. ${SECOND_WAY}` : held;
}

// The gateway cannot be reached: nothing that is shown of these parts still holds.
export function drawUnreached(since) {
  for (const name of ['training', 'trader']) {
    const pill = $(`${name}-state`);
    setText(pill, `unknown since ${clock(since)}`);
    pill.className = 'pill warn';
  }
  setText($('kill'), 'Kill switch');
  setText($('kill-why'), `The kill switch here does not reach the trader. ${SECOND_WAY}`);
}

export function ask({ title, text, path, facts = '', stages = null, danger = false, reason = false }) {
  const dialog = $('ask');
  setText($('ask-title'), title);
  setText($('ask-text'), text);
  setText($('ask-facts'), facts);
  setText($('ask-error'), '');
  $('ask-stage').hidden = !stages;
  $('ask-reason').hidden = !reason;
  $('ask-reason-text').value = '';
  $('ask-confirm-text').value = '';
  const select = $('ask-stage').querySelector('select');
  select.replaceChildren(...(stages ?? []).map((s) => Object.assign(document.createElement('option'), { textContent: s })));
  const live = () => stages !== null && select.value === 'live';
  select.onchange = () => { $('ask-confirm').hidden = !live(); };
  select.onchange();
  $('ask-key').value = sessionStorage.getItem('key') ?? '';
  const go = $('ask-go');
  setText(go, title);
  go.className = danger ? 'danger' : 'primary';
  $('ask-cancel').onclick = () => dialog.close();
  dialog.querySelector('form').onsubmit = async (event) => {
    event.preventDefault();
    if (live() && $('ask-confirm-text').value.trim() !== 'live') {
      setText($('ask-error'), 'type the word live to let this version trade with money');
      return;
    }
    go.disabled = true;
    const body = stages ? { stage: select.value } : reason ? { reason: $('ask-reason-text').value } : {};
    setText($('ask-error'), await send(path, body, $('ask-key').value));
    go.disabled = false;
    if ($('ask-error').textContent) return;
    dialog.close();
    done();
  };
  dialog.showModal();
}

// What went wrong, in words; empty where the gateway took it.
async function send(path, body, key) {
  try {
    const answer = await fetch(path, { method: 'POST', headers: { 'X-API-Key': key, 'Content-Type': 'application/json' }, body: JSON.stringify(body), signal: AbortSignal.timeout(ANSWER_MS) });
    if (answer.ok) {
      sessionStorage.setItem('key', key);
      return '';
    }
    const isProblem = answer.headers.get('content-type')?.includes('json');
    return isProblem ? (await answer.json()).detail : `the gateway cannot be reached (${answer.status}). ${SECOND_WAY}`;
  } catch (failure) {
    return `the gateway does not answer (${failure.message}); whether this was done is not known. ${path.startsWith('/trader') ? SECOND_WAY : ''}`;
  }
}
