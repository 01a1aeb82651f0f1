// Charts of the dashboard. Each one keeps its element, gets its data as columns, and is redrawn when the theme changes.
import { el, fill } from './dom.js';
import { number } from './format.js';
/* global uPlot */

const charts = new Set();

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const compact = (value) => (Math.abs(value) >= 10000 ? `${number(value / 1000, 0)}k` : `${value}`);

export class Chart {
  // series: [{label, colour, width, band, legend}]
  // options: {size, bands, format, title, xLabels, marks, zero, range, empty}
  constructor(id, series, options = {}) {
    this.holder = document.getElementById(id);
    this.options = options;
    this.series = series;
    this.legend = Object.assign(document.createElement('div'), { className: 'legend' });
    this.plotBox = Object.assign(document.createElement('div'), { className: `plot ${options.size ?? ''}` });
    this.holder.replaceChildren(this.legend, this.plotBox);
    this.plot = null;
    this.data = null;
    this.zoom = null; // {min, max} chosen by the user; null: the full range
    charts.add(this);
    this.feed(null);
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.plotBox);
  }

  size() {
    return { width: this.plotBox.clientWidth, height: this.plotBox.clientHeight };
  }

  // columns: [x, y1, y2 …]; without a point, or null: show the text for an empty chart
  feed(columns) {
    this.data = columns;
    if (!columns || columns[0].length === 0) {
      this.plot?.destroy();
      this.plot = null;
      fill(this.legend);
      fill(this.plotBox, el('div', { className: 'empty', textContent: this.options.empty ?? 'nothing yet' }));
      return;
    }
    if (!this.plot) this.draw();
    else if (this.zoom) {
      // setData would reset the range.
      this.plot.setData(columns, false);
      this.plot.setScale('x', this.zoom);
    } else this.plot.setData(columns);
    this.showLegend(columns[0].length - 1);
  }

  draw() {
    this.plot?.destroy();
    this.plotBox.replaceChildren();
    const axis = {
      stroke: colour('muted'), grid: { stroke: colour('line'), width: 1 }, ticks: { show: false },
      font: '11px system-ui, sans-serif',
    };
    const { bands, format = compact, xLabels, marks, zero, range } = this.options;
    this.plot = new uPlot({
      ...this.size(),
      padding: [10, xLabels ? 36 : 12, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 7 }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: range ? { range } : {} },
      series: [{}, ...this.series.map((s) => ({
        label: s.label, stroke: colour(s.colour), width: s.width ?? 1.75, spanGaps: true,
        // A single value has no line, so draw a point.
        points: { show: (plot, at) => plot.data[at].filter((value) => value !== null).length < 2, size: 6, fill: colour(s.colour) },
      }))],
      bands: bands?.map((band) => ({ series: band.series, fill: colour(band.fill) })),
      axes: [
        { ...axis, size: 28, gap: 8, values: (_, ticks) => ticks.map((t) => (xLabels ? xLabels(t) : compact(t))), space: xLabels ? 90 : 60 },
        { ...axis, size: 52, values: (_, ticks) => ticks.map(format) },
      ],
      hooks: {
        setSelect: [(plot) => { if (plot.select.width > 0) this.zoom = { min: plot.posToVal(plot.select.left, 'x'), max: plot.posToVal(plot.select.left + plot.select.width, 'x') }; }],
        setCursor: [(plot) => this.showLegend(plot.cursor.idx ?? this.data[0].length - 1)],
        drawAxes: zero ? [(plot) => drawZero(plot)] : [],
        draw: marks ? [(plot) => marks(plot)] : [],
      },
    }, this.data, this.plotBox);
    this.plot.over.addEventListener('dblclick', () => { this.zoom = null; });
    if (this.zoom) this.plot.setScale('x', this.zoom);
  }

  showLegend(at) {
    const { format = compact, title } = this.options;
    const items = this.series.map((s, i) => ({ s, value: this.data[i + 1][at] }))
      .filter(({ s }) => s.legend !== false)
      .map(({ s, value }) => entry(s.band ? 'band' : `s${s.colour.slice(1)}`, s.label, s.band ? '' : format(value ?? null)));
    if (title) items.unshift(entry('', title(this.data[0][at], at), ''));
    fill(this.legend, ...items);
  }
}

function entry(kind, label, value) {
  return el('span', { className: kind }, kind ? el('i') : null, label, value ? el('b', { textContent: value }) : null);
}

function drawZero(plot) {
  const { min, max } = plot.scales.y;
  if (min >= 0 || max <= 0) return;
  const y = Math.round(plot.valToPos(0, 'y', true)) + 0.5;
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = colour('muted');
  ctx.setLineDash([4, 4]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

// Marks a point of the first series: triangle up (buy), triangle down (sell) or diamond (close).
export function drawMark(plot, x, y, kind) {
  const { ctx } = plot;
  const px = plot.valToPos(x, 'x', true);
  const py = plot.valToPos(y, 'y', true);
  const r = 6 * devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  if (kind === 'BUY') { ctx.moveTo(px, py + r * 0.4); ctx.lineTo(px - r, py + r * 2); ctx.lineTo(px + r, py + r * 2); }
  if (kind === 'SELL') { ctx.moveTo(px, py - r * 0.4); ctx.lineTo(px - r, py - r * 2); ctx.lineTo(px + r, py - r * 2); }
  if (kind === 'CLOSE') { ctx.moveTo(px, py - r); ctx.lineTo(px + r, py); ctx.lineTo(px, py + r); ctx.lineTo(px - r, py); }
  ctx.closePath();
  ctx.fillStyle = colour({ BUY: 'good', SELL: 'bad', CLOSE: 'warn' }[kind]);
  ctx.fill();
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.strokeStyle = colour('card');
  ctx.stroke();
  ctx.restore();
}

export function redraw() {
  for (const chart of charts) if (chart.plot) { chart.draw(); chart.showLegend(chart.data[0].length - 1); }
}
