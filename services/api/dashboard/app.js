// The dashboard: reads the gateway's routes and follows /events; changes need the operator's key.
import { drawActive, drawRaised } from './alerts.js';
import { Chart, colour, drawMark, redraw } from './charts.js';
import { $, el, fill, setText } from './dom.js';
import { clock, number, SIDES, when } from './format.js';
import { ANSWER_MS, EventStream, whileVisible } from './live.js';
import { allow, ask, drawOperator, drawUnreached } from './operator.js';

const STATUS_MS = 2000;
const KEPT_VERSIONS = 2000;
const KEPT_DECISIONS = 600;
const ROWS = 12;
const ACTIONS = ['HOLD', 'BUY', 'SELL', 'CLOSE'];
const OUTCOMES = ['UP', 'NEUTRAL', 'DOWN'];
const STAGES = { unproven: 'unproven: no entries', paper: 'paper', live: 'live' };
const UNREAD = 'not read yet';

const KEPT_ALERTS = 200;
const state = { status: null, versions: new Map(), live: [], decisions: [], dropped: 0, trades: [], alerts: [], shown: null, picked: false, rows: ROWS, tradingRead: false, versionsRead: false };

const signed = (value, digits = 1) => (value === null || value === undefined ? '–' : `${value > 0 ? '+' : ''}${number(value, digits)}`.replace(/^[+-](0\.?0*)$/, '$1'));
const share = (value) => (value === null || value === undefined ? '–' : `${number(value * 100, 0)} %`);
const whole = (value) => number(value, 0);
const tone = (value) => (value > 0 ? 'good' : value < 0 ? 'bad' : '');
const zoned = (time) => new Date(time).toLocaleTimeString('en-GB', { timeZoneName: 'short' });
const marketTime = (time) => new Date(time).toISOString().slice(5, 16).replace('T', ' ');

async function get(path) {
  const answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(ANSWER_MS) });
  if (!answer.ok) throw new Error(answer.headers.get('content-type')?.includes('json') ? (await answer.json()).detail : `answer ${answer.status}`);
  return answer.json();
}

// ---- charts -------------------------------------------------------------------------------------
const LOSSES = [['loss', 'total', 'c1'], ['policy_loss', 'policy', 'c2'], ['value_loss', 'value', 'c3'],
  ['afterstate_value_loss', 'afterstate value', 'c6'], ['reward_loss', 'reward', 'c4'], ['outcome_loss', 'outcome', 'c5']];
const onePlace = (value) => (value === null ? '–' : number(value, 1));
const percent = (value) => (value === null ? '–' : `${number(value * 100, 1)} %`);
const episodeTitle = (x) => `episode ${whole(x)}`;
const waiting = 'appears after the first episodes of training';
const curves = {
  losses: new Chart('chart-losses', LOSSES.map(([, label, c]) => ({ label, colour: c })), { format: (v) => (v === null ? '–' : number(v, 2)), title: episodeTitle }),
  expectancy: new Chart('chart-expectancy', [{ label: 'self-play', colour: 'c1' }, { label: 'validation', colour: 'c2' }], { format: onePlace, title: episodeTitle, zero: true }),
  wins: new Chart('chart-wins', [{ label: 'self-play', colour: 'c1' }], { format: percent, title: episodeTitle, range: shareRange }),
  ratio: new Chart('chart-ratio', [{ label: 'self-play', colour: 'c1' }], { format: percent, title: episodeTitle, range: shareRange }),
};
function shareRange(_plot, _min, max) { return [0, Math.min(1, Math.max(0.1, (max ?? 0) * 1.15))]; }

const fan = new Chart('chart-fan', [
  { label: '5–95 %', colour: 'c1', width: 0.5, band: true }, { label: '95', colour: 'c1', width: 0.5, legend: false },
  { label: '25–75 %', colour: 'c1', width: 0.5, legend: false }, { label: '75', colour: 'c1', width: 0.5, legend: false },
  { label: 'median', colour: 'c1', width: 2 }, { label: 'actual', colour: 'c2', width: 2 },
], { size: 'tall', bands: [{ series: [2, 1], fill: 'band' }, { series: [4, 3], fill: 'band-inner' }], format: onePlace,
  title: (x) => `after ${whole(x)} trades`, zero: true });

// Bars are counted from the first one that this page saw, so that a zoomed range stays in place.
const barAt = (index) => state.decisions[Math.round(index) - state.dropped];
const barLabel = (index) => (Number.isInteger(index) && barAt(index) ? marketTime(barAt(index).bar_time) : '');
const barTitle = (index) => (barAt(index) ? `${marketTime(barAt(index).bar_time)} UTC` : '');
const price = new Chart('chart-price', [{ label: 'close', colour: 'c1' }], {
  format: (v) => (v === null ? '–' : number(v, 3)), xLabels: barLabel, title: barTitle, empty: UNREAD,
  marks: (plot) => state.decisions.forEach((d, i) => { if (d.executed && d.action !== 'HOLD') drawMark(plot, state.dropped + i, d.close, d.action); }),
});
const pnl = new Chart('chart-pnl', [{ label: 'pnl', colour: 'c3' }], { size: 'low', format: onePlace, xLabels: barLabel, title: barTitle, zero: true, empty: UNREAD });

// ---- drawing ------------------------------------------------------------------------------------
function drawStatus() {
  const s = state.status;
  const pill = $('state');
  const wrong = s.alerts.length;
  const [text, kind] = s.redis === 'unavailable' ? [`Redis has not answered since ${clock(s.redis_unavailable_since ?? s.time)}`, 'bad']
    : [`${s.state}${s.store === 'unavailable' ? ', checkpoint store does not answer' : ''}${wrong ? `, ${wrong} ${wrong === 1 ? 'alert' : 'alerts'}` : ''}`, wrong ? 'bad' : s.state === 'running' ? 'good' : 'warn'];
  setText(pill, text);
  pill.className = `pill ${kind}`;
  setText($('clock'), zoned(s.time));
  drawActive(s.alerts);
  drawRaised(state.tradingRead ? state.alerts : null, s);
  drawTiles(s);
  fill($('services'), ...s.services.map((service) => drawService(service, s)));
  fill($('streams'), ...Object.entries(s.streams).map(([key, length]) => el('span', { key }, `${key} `, el('b', { textContent: whole(length) }))));
  drawOperator(s, () => { readStatus(); versionsSoon(); });
  allow($('rollback'));
  drawDecision(s);
  $('replay-end').hidden = !s.trader.replay_end;
  setText($('replay-end'), s.trader.replay_end);
}

function drawTiles(s) {
  const numbers = { ...s.training.metrics, ...s.training.live };
  const promoted = s.pointers.promoted;
  const detail = s.trader.detail;
  const { side, pnl_pips: open } = detail; // from the heartbeat: the last decision may be old
  const unknown = side === undefined || side === null;
  const absent = (text) => (s.redis === 'unavailable' || s.store === 'unavailable' ? UNREAD : text);
  const tiles = [
    ['Episodes', whole(numbers.episode ?? s.training.episode), `${whole(numbers.update ?? s.training.update)} updates`],
    ['Newest version', whole(s.pointers.newest), s.training.published_at ? `published ${when(s.training.published_at)}` : absent('none published')],
    ['Promoted', promoted ? `${promoted.version}` : '–', promoted ? STAGES[promoted.stage] : absent('no version judged yet'), promoted && promoted.stage !== 'unproven' ? 'good' : ''],
    ['Expectancy', signed(numbers.expectancy_pips), 'self-play, pips a trade', tone(numbers.expectancy_pips)],
    ['Validated', signed(s.validation?.expectancy_pips), s.validation ? `version ${s.validation.version}, pips a trade` : absent('nothing yet'), tone(s.validation?.expectancy_pips)],
    ['Position', unknown ? '?' : SIDES[side], unknown ? s.trader.summary.split(';')[0] : detail.guards || detail.state || detail.mode || ''],
    ['Open pnl', side ? signed(open) : '–', detail.realised_pips === undefined ? 'pips' : `${signed(detail.realised_pips)} pips realised`, side ? tone(open) : ''],
    ['Dead letters', whole(s.dead_letters), `${whole(s.streams['mm:trajectories'])} trajectories waiting`, s.dead_letters ? 'bad' : ''],
  ];
  fill($('tiles'), ...tiles.map(([name, value, note, kind = '']) => el('div', { className: 'tile' },
    el('div', { className: 'name', textContent: name }), el('div', { className: `value ${kind}`, textContent: value }),
    el('div', { className: 'note', textContent: note, title: note }))));
}

function drawService({ service, state: now, instances, num_instances: all, restarts, absence, expected }, s) {
  const headline = [all > 1 ? `×${all}` : '', restarts ? `${restarts} restart${restarts === 1 ? '' : 's'}` : ''].filter(Boolean).join(' · ');
  const rows = instances.slice(0, 6).map((i) => el('div', { className: `dot ${i.state}`, title: Object.entries(i.detail).map(([k, v]) => `${k}: ${v}`).join('\n') },
    el('span', { textContent: i.state === 'running' ? i.instance : `${i.instance} · ${i.state}` })));
  if (all > 6) rows.push(el('div', { className: 'muted', textContent: `and ${all - 6} more` }));
  if (now === 'unknown') rows.push(el('div', { className: 'muted', textContent: `unknown since ${clock(s.redis_unavailable_since ?? s.time)}` }));
  else if (!instances.length && now === 'up') rows.push(el('div', { className: 'dot' }, el('span', { textContent: 'answers' })));
  else if (!instances.length) rows.push(el('div', { className: expected ? 'warn' : 'muted', textContent: absence?.seen_at ? `missing since ${clock(absence.since)}` : expected ? 'not seen yet' : 'not expected' }));
  return el('div', { className: `service ${instances.length ? '' : 'absent'}`, key: service }, el('header', {}, el('span', { textContent: service }), el('span', { className: restarts ? 'warn' : 'muted', textContent: headline })), ...rows);
}

function drawDecision(s) {
  const d = s?.trader.last_decision;
  if (!d) { fill($('decision'), el('div', { className: 'empty', textContent: s?.redis !== 'up' ? UNREAD : 'the trader has not decided yet' })); return; }
  const facts = [['bar', `${marketTime(d.bar_time)} UTC`], ['order', d.action === 'HOLD' ? d.reason || 'none' : d.executed ? 'filled' : d.reason || 'not sent'], ['value', `${signed(d.value)} pips`],
    ['version', d.version ?? '–'], ['position after', `${SIDES[d.side]}${d.side ? ` ${signed(d.pnl_pips)}` : ''}`], ['latency', d.latency_ms === null ? '–' : `${number(d.latency_ms, 1)} ms`]];
  fill($('decision'),
    el('div', { className: `action ${{ BUY: 'good', SELL: 'bad', CLOSE: 'warn' }[d.action] ?? ''}`, textContent: d.action }),
    el('div', { className: 'muted', textContent: 'visit policy' }), bars(ACTIONS, d.visit_policy, ''),
    el('div', { className: 'muted', textContent: 'next close, as the model expects it' }), bars(OUTCOMES, d.outcome_probabilities, 'outcomes'),
    factList(facts));
}
function bars(names, shares, kind) {
  return el('div', { className: `bars ${kind}` }, ...names.flatMap((name, i) => [el('span', { textContent: name.toLowerCase() }),
    el('progress', { max: 1, value: shares[i] ?? 0, ariaLabel: name }), el('span', { textContent: share(shares[i]) })]));
}
const factList = (facts) => el('dl', { className: 'facts' }, ...facts.flatMap(([name, value, kind = '']) => [el('dt', { textContent: name }), el('dd', { textContent: value, className: kind })]));

function drawVersions() {
  const decides = (v) => v.version === state.status?.pointers.promoted?.version; // first, however old
  const all = [...state.versions.values()].sort((a, b) => decides(b) - decides(a) || b.version - a.version);
  fill($('versions-table').tBodies[0], ...(all.length ? all.slice(0, state.rows).map(versionRow) : [emptyRow(11, state.versionsRead ? 'the trainer publishes version 0 when it starts' : UNREAD)]));
  $('more-versions').hidden = all.length <= state.rows;
  drawCurves();
  const judged = [...state.versions.values()].filter((v) => v.validation).map((v) => v.version).sort((a, b) => b - a);
  const select = $('validated');
  if (select.options.length !== judged.length || Number(select.options[0]?.value) !== judged[0]) {
    fill(select, ...judged.map((v) => el('option', { value: v, textContent: v, key: v })));
  }
  const promoted = state.status?.pointers.promoted?.version;
  const wanted = state.picked ? state.shown : judged.includes(promoted) ? promoted : judged[0];
  if (wanted !== undefined && wanted !== null) {
    select.value = wanted;
    if (wanted !== state.shown || !state.report) showValidation(wanted);
  } else drawReport({ summary: null, report: null });
}

function versionRow(v) {
  const j = v.validation;
  // Use the pointers of the status: those of a version that was read earlier may be outdated.
  const { best, promoted } = state.status?.pointers ?? {};
  const stage = promoted?.version === v.version ? promoted.stage : null;
  const gates = el('td', { className: 'left' }, best === v.version ? el('span', { className: 'tag', textContent: 'best' }) : null,
    stage ? stageTag(stage, j) : null,
    ...(j ? j.passed_gates.map((g) => el('span', { className: 'tag good', textContent: `passed ${g}` })) : []));
  if (v.fault) gates.append(el('span', { className: 'tag live', textContent: 'damaged', title: v.fault }));
  if (j?.reasons.length) gates.title = j.reasons.join('\n');
  const button = el('button', { type: 'button', textContent: 'Promote', disabled: !j?.passed_gates.length || !v.stored || state.status?.changes_allowed === false, title: state.status?.changes_allowed === false ? 'changes over HTTP are disabled: no API key is set' : !j ? 'not validated' : j.passed_gates.length ? '' : j.reasons.join('\n') });
  button.onclick = () => ask({ title: `Promote version ${v.version}`, text: 'It will make the trading decisions from the next bar on.', path: `/checkpoints/${v.version}/promote`, stages: j.passed_gates });
  return el('tr', { key: v.version, className: stage ? 'promoted' : v.stored ? '' : 'gone' },
    el('td', { textContent: v.version }), el('td', { textContent: whole(v.episode) }), el('td', { textContent: v.created_at ? when(v.created_at) : '–' }),
    el('td', { textContent: number(v.metrics.loss, 3) }), el('td', { textContent: j ? whole(j.num_trades) : '–' }),
    el('td', { textContent: signed(j?.expectancy_pips, 2), className: tone(j?.expectancy_pips) }), el('td', { textContent: number(j?.sqn, 2) }),
    el('td', { textContent: signed(j?.net_pips), className: tone(j?.net_pips) }), el('td', { textContent: number(j?.max_drawdown_pips, 1) }), gates, el('td', {}, button));
}
// An unproven version is served but not traded, so its tag is grey, never green.
function stageTag(stage, judged) {
  if (stage !== 'unproven') return el('span', { className: `tag ${stage === 'live' ? 'live' : 'good'}`, textContent: `promoted: ${stage}` });
  const trades = judged ? `; ${whole(judged.num_trades)} trades` : '';
  return el('span', { className: 'tag', textContent: 'unproven', title: `passed no gate; served because no version was promoted${trades}; the trader enters no position with it` });
}
const emptyRow = (columns, text) => el('tr', {}, el('td', { colSpan: columns, className: 'muted left', textContent: text }));

// Published versions, followed by the heartbeats of the trainer that this page received since the newest one.
function drawCurves() {
  const published = [...state.versions.values()].filter((v) => v.episode !== null).sort((a, b) => a.version - b.version);
  const newest = published.at(-1)?.episode ?? -1;
  state.live = state.live.filter((point) => point.episode > newest);
  const made = [...published, ...state.live];
  if (made.length < 2) {
    Object.values(curves).forEach((c) => { c.options.empty = state.versionsRead ? waiting : UNREAD; c.feed(null); });
    return;
  }
  const x = made.map((v) => v.episode);
  const column = (name) => made.map((v) => v.metrics[name] ?? null);
  curves.losses.feed([x, ...LOSSES.map(([name]) => column(name))]);
  curves.expectancy.feed([x, column('expectancy_pips'), made.map((v) => v.validation?.expectancy_pips ?? null)]);
  curves.wins.feed([x, column('win_rate')]);
  curves.ratio.feed([x, column('trade_ratio')]);
}

function addLive(live) {
  if (typeof live.episode !== 'number' || live.episode <= (state.live.at(-1)?.episode ?? -1)) return;
  state.live.push({ episode: live.episode, metrics: live });
  drawCurves();
}

async function showValidation(version) {
  state.shown = version;
  const unreadable = ({ message }) => ({ summary: state.versions.get(version)?.validation ?? null, report: null, has_page: false, fault: message });
  const detail = await get(`/validations/${version}`).catch(unreadable);
  if (state.shown !== version) return;
  state.report = detail.report;
  $('report-page').hidden = !detail.has_page;
  $('report-page').href = `/validations/${version}/page`;
  drawReport(detail);
}

// The path of each number in a report, under which the report has the reason for an undefined number.
const PATHS = { 'pips a trade': 'summary.trades.expectancy_pips', SQN: 'summary.trades.sqn100', 'win rate': 'summary.trades.win_rate', 'profit factor': 'summary.trades.profit_factor',
  'Sharpe, daily': 'summary.daily.sharpe', 'deflated Sharpe': 'summary.honesty.deflated_sharpe', 'safe-f': 'summary.sizing.safe_f', CAR25: 'summary.sizing.safe_f.car25_percent', 'overfitting (PBO)': 'overfitting.probability' };
function drawReport({ summary, report, fault = '' }) {
  const s = report?.summary;
  const why = report?.undefined ?? {};
  const none = state.versionsRead ? 'no version judged yet' : UNREAD;
  const carlo = s?.monte_carlo?.find((m) => m.resampling === 'block') ?? s?.monte_carlo?.[0];
  if (carlo) {
    const [p5, p25, p50, p75, p95] = carlo.fan_pips;
    fan.feed([carlo.fan_trades, p5, p95, p25, p75, p50, report.realised_pips?.length === carlo.fan_trades.length ? report.realised_pips : p50.map(() => null)]);
  } else {
    fan.options.empty = fault ? `the report cannot be read: ${fault}` : !summary ? none : summary.num_trades ? 'the report has no resampled curves' : `version ${summary.version} made no trade in validation`;
    fan.feed(null);
  }
  const facts = summary ? [['sessions', whole(summary.num_sessions)], ['trades', whole(summary.num_trades)],
    ['pips a trade', signed(summary.expectancy_pips, 2), tone(summary.expectancy_pips)], ['SQN', number(summary.sqn, 2)],
    ['net pips', signed(summary.net_pips), tone(summary.net_pips)], ['largest drawdown', `${number(summary.max_drawdown_pips, 1)} pips`]] : [];
  if (s) facts.push(['win rate', share(s.trades.win_rate)], ['profit factor', number(s.trades.profit_factor, 2)], ['Sharpe, daily', number(s.daily.sharpe, 2)],
    ['deflated Sharpe', number(s.honesty?.deflated_sharpe, 2)], ['safe-f', number(s.sizing.safe_f?.fraction, 3)],
    ['CAR25', Number.isFinite(s.sizing.safe_f?.car25_percent) ? `${number(s.sizing.safe_f.car25_percent, 1)} %` : '–'], ['overfitting (PBO)', share(report.overfitting?.probability)]);
  if (carlo) facts.push(['chance of a loss', share(carlo.probability_of_loss)], ['chance of ruin', share(carlo.probability_of_ruin)], ['drawdown, 95th percentile', `${number(carlo.max_drawdown_pips[4], 0)} pips`]);
  const undefinedBecause = (path) => { const found = Object.keys(why).find((known) => path === known || path.startsWith(`${known}.`)); return found && why[found]; };
  facts.forEach((fact) => { const reason = fact[1] === '–' && PATHS[fact[0]] && undefinedBecause(PATHS[fact[0]]); if (reason) { fact[1] = reason; fact[2] = 'muted'; } });
  const reasons = summary?.reasons ?? [];
  fill($('verdict'),
    el('p', {}, ...(summary?.passed_gates.length ? summary.passed_gates.map((g) => el('span', { className: 'tag good', textContent: `passed ${g}` })) : [el('span', { className: 'tag', textContent: summary ? 'passed no gate' : none })])),
    factList(facts), el('ul', { className: 'reasons' }, ...reasons.map((r) => el('li', { textContent: r }))));
  fill($('months').tBodies[0], ...(report?.months?.length ? report.months.map((m) => row([m.month, whole(m.num_days), whole(m.num_trades), share(m.win_rate), signed(m.expectancy_pips), signed(m.pips)], m.pips)) : [emptyRow(6, summary ? 'none' : none)]));
  const rivals = report?.baselines?.map((b) => row([b.name.replaceAll('_', ' '), whole(b.num_trades), signed(b.expectancy_pips), number(b.sqn100, 2), signed(b.net_pips), number(b.max_drawdown_pips, 0)], b.net_pips, 4)) ?? [];
  if (summary) rivals.unshift(row([`version ${summary.version}`, whole(summary.num_trades), signed(summary.expectancy_pips), number(summary.sqn, 2), signed(summary.net_pips), number(summary.max_drawdown_pips, 0)], summary.net_pips, 4));
  fill($('baselines').tBodies[0], ...(rivals.length ? rivals : [emptyRow(6, none)]));
}
function row(cells, value, coloured = cells.length - 1) {
  return el('tr', {}, ...cells.map((text, i) => el('td', { textContent: text, className: i === 0 ? 'left' : i === coloured ? tone(value) : '' })));
}

function drawTrading() {
  const decisions = state.decisions;
  if (decisions.length > 1) {
    const x = decisions.map((_, i) => state.dropped + i);
    price.feed([x, decisions.map((d) => d.close)]);
    pnl.feed([x, decisions.map((d) => (d.side ? d.pnl_pips : 0))]);
    $('price-note').textContent = `last ${decisions.length} bars · ▲ buy ▼ sell ◆ close`;
  } else {
    price.options.empty = pnl.options.empty = !state.tradingRead ? UNREAD : decisions.length ? 'appears after the second decision' : 'the trader has not decided yet';
    price.feed(null);
    pnl.feed(null);
  }
  fill($('trades').tBodies[0], ...(state.trades.length ? state.trades.map((t) => el('tr', {}, el('td', { className: 'left', textContent: marketTime(t.exit_time) }),
    el('td', { className: 'left', textContent: SIDES[t.side] }), el('td', { textContent: number(t.entry_price, 3) }), el('td', { textContent: number(t.exit_price, 3) }),
    el('td', { textContent: signed(t.pips), className: tone(t.pips) }), el('td', { className: 'left wrap', textContent: t.reason }))) : [emptyRow(6, state.tradingRead ? 'no trade closed yet' : UNREAD)]));
  drawRaised(state.tradingRead ? state.alerts : null, state.status);
}

// ---- reading ------------------------------------------------------------------------------------
async function readStatus() {
  try {
    const before = JSON.stringify(state.status?.pointers);
    state.status = await get('/status');
    unanswered = null;
    drawStatus();
    addLive(state.status.training.live);
    if (before !== JSON.stringify(state.status.pointers)) drawVersions();
    if (unread && state.status.redis === 'up' && state.status.store === 'up') readAll();
  } catch (failure) {
    unanswered ??= Date.now();
    setText($('state'), `no answer from the gateway since ${clock(unanswered)}`);
    $('state').className = 'pill bad';
    drawUnreached(unanswered);
    console.warn(failure);
  }
  drawStale();
}

// Times since which the gateway has not answered, and since which no event can arrive; null: all is well.
let unanswered = null;
let unheard = null;
function drawStale() {
  const text = unanswered ? `The gateway does not answer: this page shows the state of ${clock(unanswered)} or earlier.`
    : unheard ? `Events do not arrive: prices, decisions, trades, versions and alerts are of ${clock(unheard)} or earlier. Reconnecting.` : '';
  setText($('stale'), text);
  $('stale').hidden = !text;
  document.body.classList.toggle('is-stale', Boolean(unanswered));
  document.body.classList.toggle('is-unheard', Boolean(text));
}

async function readVersions(pages) {
  let before = '';
  for (let page = 0; page < pages; page += 1) {
    const { items, next } = await get(`/checkpoints?limit=${pages > 1 ? 500 : 20}${before}`);
    items.forEach((item) => state.versions.set(item.version, item));
    if (next === null) break;
    before = `&before=${next}`;
  }
  state.versionsRead = true;
  drawVersions();
}

async function readTrading() {
  const [decisions, trades, alerts] = await Promise.all([get(`/decisions?limit=500`), get('/trades?limit=50'), get(`/alerts?limit=${KEPT_ALERTS}`)]);
  const seen = state.decisions.at(-1)?.bar_time;
  const read = decisions.items.map((i) => i.message).reverse();
  const at = read.findLastIndex((d) => d.bar_time === seen);
  state.dropped += at < 0 ? state.decisions.length : state.decisions.length - at - 1;
  state.decisions = read;
  state.trades = unique(trades.items.map((i) => i.message), 'trade_id');
  state.alerts = unique(alerts.items.map((i) => i.message), 'alert_id');
  state.tradingRead = true;
  drawTrading();
}

// Set after a failed read: everything is read again with the next status.
let unread = false;
const failed = (failure) => { unread = true; console.warn(failure); };

const soon = (work) => { let timer = null; return () => { timer ??= setTimeout(() => { timer = null; work().catch(failed); }, 250); }; };
const versionsSoon = soon(() => readVersions(1));
const tradingSoon = soon(async () => drawTrading());
const statusSoon = soon(readStatus);

function readAll() {
  loaded = true;
  unread = false;
  readVersions(KEPT_VERSIONS / 500).catch(failed);
  readTrading().catch(failed);
}

// Removes duplicates: an entry may be in its stream twice, and may arrive as an event after it was read.
const unique = (items, id) => [...new Map(items.map((item) => [item[id], item])).values()];
const addFirst = (list, item, id, most) => { state[list] = unique([item, ...state[list]], id).slice(0, most); tradingSoon(); };
const ACTIONS_BY_EVENT = {
  decision: (d) => {
    state.decisions.push(d);
    state.dropped += state.decisions.splice(0, state.decisions.length - KEPT_DECISIONS).length;
    tradingSoon();
  },
  trade: (t) => addFirst('trades', t, 'trade_id', 50),
  alert: (a) => addFirst('alerts', a, 'alert_id', KEPT_ALERTS),
  validation: (v) => { if (v.version === state.shown) state.report = null; versionsSoon(); },
  checkpoint: versionsSoon,
  promotion: versionsSoon,
  control: () => {},
  dead: () => {},
  reset: readAll,
};
const handlers = Object.fromEntries(Object.entries(ACTIONS_BY_EVENT).map(([name, act]) => [name, (data) => { act(data); statusSoon(); }]));
const stream = new EventStream(handlers, {
  opened: () => { // earlier events were not received
    unheard = null;
    drawStale();
    readAll();
  },
  lost: () => {
    if (!unheard && !loaded) readAll();
    unheard ??= Date.now();
    drawStale();
  },
});
let loaded = false;

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  redraw();
}
const prefersDark = matchMedia('(prefers-color-scheme: dark)');
const chosen = () => localStorage.getItem('theme') ?? (prefersDark.matches ? 'dark' : 'light');
prefersDark.addEventListener('change', () => setTheme(chosen()));
$('theme').onclick = () => { localStorage.setItem('theme', chosen() === 'dark' ? 'light' : 'dark'); setTheme(chosen()); };
$('rollback').onclick = () => {
  const promoted = state.status?.pointers.promoted;
  const now = promoted ? `Version ${promoted.version}, promoted to ${promoted.stage}, no longer makes the trading decisions.` : 'No version is promoted.';
  ask({ title: 'Roll back', text: `${now} The previously promoted version makes the decisions again.`, path: '/checkpoints/rollback' });
};
$('more-versions').onclick = () => { state.rows += 50; drawVersions(); };
$('validated').onchange = (event) => { state.picked = true; showValidation(Number(event.target.value)); };

setTheme(chosen());
fill($('services'), el('div', { className: 'muted', textContent: UNREAD }));
drawDecision(null);
drawVersions();
drawTrading();
whileVisible(readStatus, STATUS_MS, { shown: () => stream.open(), hidden: () => stream.close() });
document.documentElement.dataset.ready = colour('bg') ? 'yes' : 'no';
