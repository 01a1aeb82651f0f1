// Alerts: the active ones, and the list of raised ones, grouped by condition.
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
  // Screen readers read the changes aloud, not the alerts that stayed.
  const news = [...began.map((key) => `alert: ${key}`), ...ended.map((key) => `over: ${key}`)];
  if (news.length) setText($('announcer'), news.join('. '));
}

// One entry per condition, ordered by newest alert: [{key, alert, count, began, ended}]
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

// Only the trader announces the end of its own conditions, and a trader that was killed cannot. So a condition that
// began before the present trader started has no known end. The gateway itself announces trader_* and service_*.
const traderStart = (status) => Math.min(...(status?.services.find((s) => s.service === 'trader')?.instances ?? []).map((i) => Date.parse(i.started_at)));
const hasUnknownEnd = ({ source, name, phase, created_at: at }, since) => phase === 'began' && source === 'trader' && !/^(trader|service)_/.test(name) && Date.parse(at) < since;

function timesOf({ alert, count, began, ended }, unknownEnd) {
  if (alert.phase === 'event') return count > 1 ? `${count} times, last ${when(alert.created_at)}` : when(alert.created_at);
  const episodes = count > 1 ? `, ${count} times` : '';
  if (unknownEnd) return `began ${when(began)}${episodes}, its end is not known`;
  if (alert.phase === 'began') return `since ${when(began)}${episodes}`;
  const flaps = alert.occurrences > 1 ? ` after ${alert.occurrences} occurrences` : '';
  return `${began ? `began ${when(began)}, ` : ''}ended ${when(ended)}${flaps}${episodes}`;
}

// alerts: newest first; null if they have not been read.
export function drawRaised(alerts, status) {
  if (alerts === null) { fill($('alert-log'), el('li', { className: 'muted', textContent: 'not read yet' })); return; }
  const since = traderStart(status);
  const entries = grouped(alerts).map((group) => {
    const unknownEnd = hasUnknownEnd(group.alert, since);
    return el('li', { key: group.key },
      el('b', { textContent: `${group.key} ` }),
      el('span', { className: `tag ${group.alert.phase === 'began' && !unknownEnd ? 'live' : ''}`, textContent: timesOf(group, unknownEnd) }),
      el('span', { className: 'muted', textContent: group.alert.detail }));
  });
  fill($('alert-log'), ...(entries.length ? entries : [el('li', { className: 'muted', textContent: 'none' })]));
}
