// The controls of the operator: ordered and reported states, the kill switch in the header, and the dialogs.
import { $, setText } from './dom.js';
import { clock, number, SIDES } from './format.js';
import { ANSWER_MS } from './live.js';

const KILL_ON_HOST = 'To stop trading now, run ./run kill on the host of the trader.';
const EXPLAINED = {
  '/training/pause': 'Training pauses. Self-play continues until its stream reaches the high-water mark.',
  '/training/resume': 'Training resumes.',
  '/trader/kill': 'The trader closes its position and stops trading until it is resumed. The order survives restarts.',
  '/trader/resume': 'The kill switch is lifted, and the trader may enter positions again.',
};

let latest = null;
let done = () => {};

// Green only if the service reports the ordered state and has no alert.
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
  // A kill file overrides every order, so this page cannot resume trading.
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
  setText($('kill-why'), !allowed ? `Changes over HTTP are disabled: no API key is set (MM_GATEWAY__API_KEY). ${KILL_ON_HOST}`
    : redis === 'unavailable' ? `Redis does not answer, so this kill switch does not reach the trader. ${KILL_ON_HOST}` : '');
}
$('kill').onclick = () => ask({ title: 'Kill switch', text: EXPLAINED['/trader/kill'], facts: latest ? position(latest) : 'Position: not known.', path: '/trader/kill', danger: true, reason: true });

export function allow(button) {
  button.disabled = latest?.changes_allowed === false;
  if (button.disabled) button.title = 'changes over HTTP are disabled: no API key is set';
}

// The position that a kill would close, as the trader reports it.
function position({ redis, trader }) {
  const { side, pnl_pips: pnl, units } = trader.detail;
  const held = side === undefined || side === null ? 'Position: not known.'
    : `Position: ${SIDES[side]}${side ? ` ${number(Math.abs(units ?? 0), 0)} units, open pnl ${number(pnl, 1)} pips` : ''}, as the trader reported at ${clock(trader.heard_at)}.`;
  return redis === 'unavailable' ? `${held} Redis does not answer, so this order does not reach the trader. ${KILL_ON_HOST}` : held;
}

// The gateway does not answer, so the states of the trader and of training are unknown.
export function drawUnreached(since) {
  for (const name of ['training', 'trader']) {
    const pill = $(`${name}-state`);
    setText(pill, `unknown since ${clock(since)}`);
    pill.className = 'pill warn';
  }
  setText($('kill'), 'Kill switch');
  setText($('kill-why'), `The gateway does not answer, so this kill switch does not reach the trader. ${KILL_ON_HOST}`);
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
      setText($('ask-error'), 'type the word live to let this version trade with real money');
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

// Sends an order. Returns the reason of a failure; empty if the gateway accepted the order.
async function send(path, body, key) {
  try {
    const answer = await fetch(path, { method: 'POST', headers: { 'X-API-Key': key, 'Content-Type': 'application/json' }, body: JSON.stringify(body), signal: AbortSignal.timeout(ANSWER_MS) });
    if (answer.ok) {
      sessionStorage.setItem('key', key);
      return '';
    }
    const isProblem = answer.headers.get('content-type')?.includes('json');
    return isProblem ? (await answer.json()).detail : `the gateway cannot be reached (${answer.status}). ${KILL_ON_HOST}`;
  } catch (failure) {
    return `the gateway does not answer (${failure.message}); it is not known whether the order was carried out. ${path.startsWith('/trader') ? KILL_ON_HOST : ''}`;
  }
}
