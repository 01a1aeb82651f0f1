// How the page writes numbers, times and sides.

export const SIDES = { '-1': 'short', 0: 'flat', 1: 'long' };

export function number(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export const clock = (time) => new Date(time).toLocaleTimeString('en-GB');

// The time if within the last twelve hours, otherwise the date.
export const when = (time) => (Date.now() - new Date(time) < 43_200_000 ? clock(time) : new Date(time).toLocaleDateString('en-CA'));
