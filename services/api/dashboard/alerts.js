// Alerts: those that hold now, and the list of what was raised, put together by condition.
import { $, el, fill, setText } from './dom.js';
import { when } from './format.js';

const words = (name) => name.replaceAll('_', ' ');
const keyOf = ({ source, name }) => `${source}: ${words(name)}`;

let announced = null;

export function drawActive(alerts) {
  fill($('alerts'), ...alerts.map((a) => el('div', { className: 'alert', key: keyOf(a) },
    el('b', { textContent: keyOf(a) }), el('span', { textContent: a.detail }),
    el('small', { textContent: a.since ? `since ${when(a.since)}` : '' }))));
  const now = new Set(alerts.map(keyOf));
  const began = [...now].filter((key) => announced === null || !announced.has(key));
  const ended = [...(announced ?? [])].filter((key) => !now.has(key));
  announced = now;
  // Read out by screen readers: what changed, and nothing that stayed.
  const news = [...began.map((key) => `alert: ${key}`), ...ended.map((key) => `over: ${key}`)];
  if (news.length) setText($('announcer'), news.join('. '));
}

// One entry a condition, with its newest alert first: [{key, alert, count, began, ended}]
export function grouped(alerts) {
  const groups = new Map();
  for (const alert of alerts) { // newest first
    const key = keyOf(alert);
    const group = groups.get(key) ?? { key, alert, count: 0, began: null, ended: null };
    groups.set(key, group);
    if (alert.phase === 'event') group.count += alert.occurrences;
    if (alert.phase === 'began') {
      group.began ??= alert.created_at;
      group.count += 1;
    }
    if (alert.phase === 'ended') group.ended ??= alert.created_at;
  }
  return [...groups.values()];
}

// The trader's own conditions end by its word alone, and a trader that died gives none: when the trader that is
// there now started, or never. The gateway announces trader_* and service_* itself.
const speaksSince = (status) => Math.min(...(status?.services.find((s) => s.service === 'trader')?.instances ?? []).map((i) => Date.parse(i.started_at)));
const isForgotten = ({ source, name, phase, created_at: at }, since) => phase === 'began' && source === 'trader' && !/^(trader|service)_/.test(name) && Date.parse(at) < since;

function timesOf({ alert, count, began, ended }, forgotten) {
  if (alert.phase === 'event') return count > 1 ? `${count} times, last ${when(alert.created_at)}` : when(alert.created_at);
  const episodes = count > 1 ? `, ${count} times` : '';
  if (forgotten) return `began ${when(began)}${episodes}, its end is not known`;
  if (alert.phase === 'began') return `since ${when(began)}${episodes}`;
  const flaps = alert.occurrences > 1 ? ` after ${alert.occurrences} occurrences` : '';
  return `${began ? `began ${when(began)}, ` : ''}ended ${when(ended)}${flaps}${episodes}`;
}

// alerts: newest first; null while they were not read.
export function drawRaised(alerts, status) {
  if (alerts === null) { fill($('alert-log'), el('li', { className: 'muted', textContent: 'not read yet' })); return; }
  const since = speaksSince(status);
  const entries = grouped(alerts).map((group) => {
    const forgotten = isForgotten(group.alert, since);
    return el('li', { key: group.key },
      el('b', { textContent: `${group.key} ` }),
      el('span', { className: `tag ${group.alert.phase === 'began' && !forgotten ? 'live' : ''}`, textContent: timesOf(group, forgotten) }),
      el('span', { className: 'muted', textContent: group.alert.detail }));
  });
  fill($('alert-log'), ...(entries.length ? entries : [el('li', { className: 'muted', textContent: 'none' })]));
}
