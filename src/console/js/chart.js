// Charts of the last ten minutes: lines over time, drawn once and moved in place.

const SPAN_MS = 600_000;
/** A gateway that has not run for long fills its charts nevertheless, from here on. */
const SPAN_MS_MIN = 120_000;
const WIDTH = 600;
const HEIGHT = 100;

/** The smallest of 1, 2, 5 times a power of ten that is not below `value`. */
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/** All charts show the same moment while one is pointed at. */
const pointer = { at: null, charts: new Set() };

/** `lines`: `[{name, of: point → number | null}]`, one or two. */
function chart({ title, lines, unit = '', full = false }) {
  const paths = lines.map((_, n) => svg('path', { class: n ? 'b' : 'a' }));
  const area = svg('path', { class: 'area' });
  const mark = svg('line', { class: 'at', y1: 0, y2: HEIGHT, visibility: 'hidden' });
  const max = h('span', { class: 'max', 'aria-hidden': 'true' });
  const values = lines.map(() => [document.createTextNode('–')]);
  const when = h('span', null, '10 min ago');
  const plot = h('div', { class: 'plot' },
    svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      [0, 0.5, 1].map((y) => svg('line', { class: 'grid', x1: 0, x2: WIDTH, y1: y * HEIGHT, y2: y * HEIGHT })),
      lines.length === 1 && area, paths, mark),
    max);
  const node = h('figure', { class: `card chart ${full ? 'full' : ''}`, role: 'group' },
    h('figcaption', null,
      h('span', { class: 'name' }, title),
      h('span', { class: 'values' }, lines.map((line, n) => h('span', { class: 'value' },
        lines.length > 1 && h('span', { class: `key ${n ? 'b' : ''}` }), values[n][0],
        (line.name || unit) && h('small', null, [line.name, unit].filter(Boolean).join(' ')))))),
    plot,
    h('div', { class: 'axis', 'aria-hidden': 'true' }, when, h('span', null, 'now')));
  let points = [];
  let end = 0;
  let span = SPAN_MS;

  plot.addEventListener('pointermove', (event) => {
    const box = plot.getBoundingClientRect();
    point(end - span + ((event.clientX - box.left) / box.width) * span);
  });
  plot.addEventListener('pointerleave', () => point(null));
  plot.addEventListener('pointercancel', () => point(null));

  function show() {
    const shown = pointer.at == null ? points.at(-1) : nearest(points, pointer.at);
    lines.forEach((line, n) => {
      const text = shown ? number(line.of(shown)) : '–';
      if (values[n][0].data !== text) values[n][0].data = text;
    });
    const x = shown && ((shown.t - end + span) / span) * WIDTH;
    attr(mark, 'visibility', pointer.at == null || !shown ? 'hidden' : 'visible');
    if (pointer.at != null && shown) {
      attr(mark, 'x1', x);
      attr(mark, 'x2', x);
    }
    say(when, pointer.at == null || !shown ? `${Math.round(span / 60_000)} min ago` : clock(shown.t));
  }

  const self = {
    node,
    show,
    set(series, now) {
      points = series;
      end = now;
      const age = points.length ? now - points[0].t : 0;
      span = Math.min(SPAN_MS, Math.max(SPAN_MS_MIN, Math.ceil(age / 60_000) * 60_000));
      let top = 0;
      for (const p of points) for (const line of lines) top = Math.max(top, line.of(p) ?? 0);
      // So that a line at its highest is not the frame.
      const scale = ceiling(top * 1.05);
      say(max, number(scale));
      lines.forEach((line, n) => {
        const d = drawn(points, line.of, end, span, scale);
        paths[n].setAttribute('d', d.line);
        if (!n && lines.length === 1) area.setAttribute('d', d.area);
      });
      show();
      const last = points.at(-1);
      attr(node, 'aria-label', `${title}: ${lines.map((line) => `${line.name ?? ''} ${last ? number(line.of(last)) : 'unknown'} ${unit}`.trim()).join(', ')}; highest in ten minutes ${number(top)}`);
    },
  };
  pointer.charts.add(self);
  return self;
}

function point(at) {
  pointer.at = at;
  for (const one of pointer.charts) one.node.isConnected ? one.show() : pointer.charts.delete(one);
}

function nearest(points, at) {
  let best = null;
  for (const p of points) if (!best || Math.abs(p.t - at) < Math.abs(best.t - at)) best = p;
  return best;
}

/** The path of a line, with a gap where there is nothing, and of the area under it. */
function drawn(points, of, end, span, scale) {
  let line = '';
  let area = '';
  let first = null;
  let x = 0;
  const close = () => {
    if (first != null) area += `L${x} ${HEIGHT}L${first} ${HEIGHT}Z`;
    first = null;
  };
  for (const p of points) {
    const value = of(p);
    if (value == null) {
      close();
      continue;
    }
    x = Math.round(Math.max(0, (p.t - end + span) / span) * WIDTH * 10) / 10;
    const y = Math.round((1 - Math.min(1, value / scale)) * HEIGHT * 10) / 10;
    const to = `${first == null ? 'M' : 'L'}${x} ${y}`;
    if (first == null) first = x;
    line += to;
    area += to;
  }
  close();
  return { line, area };
}
