// Elements, lists that change in place, numbers and times as people read them.
//
// Data reaches the page through text nodes and attributes only: what a device calls itself is shown, and never read as markup.

const SVG = 'http://www.w3.org/2000/svg';

/** An element. Properties that begin with `on` are listeners, `value` and `checked` are set as such, others are attributes. */
function h(tag, props, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** The same for SVG. */
function svg(tag, props, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'value' || name === 'checked') node[name] = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(3).filter((child) => child != null && child !== false));
  return node;
}

const ICONS = {
  overview: ['M2 9h3l2-6 3 11 2-5h2'],
  devices: ['M9 1.5 3.5 9H8l-1 5.5L12.5 7H8z'],
  orders: ['M3 3.500h10M3 8h10M3 12.500h6'],
  webhooks: ['M6.5 9.500a2.7 2.7 0 0 0 4 .2l2-2a2.7 2.7 0 0 0-3.8-3.800l-1 1', 'M9.5 6.500a2.7 2.7 0 0 0-4-.2l-2 2a2.7 2.7 0 0 0 3.8 3.800l1-1'],
  keys: ['M10.5 9.500a3.5 3.5 0 1 0-3.3-2.400L2 12.300V14h2.500v-1.700h1.700v-1.700l1-1a3.5 3.5 0 0 0 3.3-.1z', 'M10.9 5.100h.01'],
  help: ['M8 14.500a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13z', 'M6.2 6.100a1.9 1.9 0 1 1 2.7 2c-.6.3-.9.7-.9 1.3', 'M8 11.500h.01'],
  search: ['M7 11.500a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9z', 'm10.3 10.3 3.4 3.4'],
  theme: ['M13.5 9.600A5.8 5.8 0 0 1 6.4 2.500a5.8 5.8 0 1 0 7.1 7.100z'],
  out: ['M6.5 2.500H3v11h3.5', 'M10.5 5l3 3-3 3', 'M13.5 8H6.5'],
};

function icon(name) {
  return svg('svg', { viewBox: '0 0 16 16', class: 'icon', 'aria-hidden': 'true' }, ICONS[name].map((d) => svg('path', { d })));
}

function logo() {
  return svg('svg', { viewBox: '0 0 32 32', 'aria-hidden': 'true' },
    svg('rect', { width: 32, height: 32, rx: 8, fill: 'var(--accent)' }),
    svg('path', { d: 'M17.5 5 8 18.500h6.500L13 27l11-14.500h-7z', fill: 'var(--on-accent)' }));
}

/** Sets a node's text, if it is another: what a reader has selected stays selected. */
function say(node, text) {
  const wanted = text == null ? '' : String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
  return node;
}

function attr(node, name, value) {
  if (value == null || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value === true ? '' : value);
}

/** Makes the children of `parent` those of `items`, by key. `make` gives a row `{node, update}`; rows that stay are only updated. */
function keyed(parent, items, keyOf, make) {
  const before = parent.keyedRows ?? new Map();
  const after = new Map();
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (after.has(key)) continue;
    const row = before.get(key) ?? make(item);
    before.delete(key);
    after.set(key, row);
    row.update(item);
    if (row.node === next) next = next.nextElementSibling;
    else parent.insertBefore(row.node, next);
  }
  for (const row of before.values()) row.node.remove();
  parent.keyedRows = after;
}

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const hundredths = new Intl.NumberFormat('en', { maximumFractionDigits: 2 });
const two = (number) => String(number).padStart(2, '0');

/** A number with as many digits as it is worth. */
function number(value) {
  if (value == null) return '–';
  return (Math.abs(value) >= 100 || Number.isInteger(value) ? whole : Math.abs(value) >= 10 ? tenths : hundredths).format(value);
}

const count = (value, one, many = `${one}s`) => `${whole.format(value)} ${value === 1 ? one : many}`;
const watts = (dw) => (dw == null ? '–' : dw >= 10_000 ? `${hundredths.format(dw / 10_000)} kW` : `${tenths.format(dw / 10)} W`);
const kwh = (wh) => (wh == null ? '–' : wh >= 1_000 ? `${hundredths.format(wh / 1_000)} kWh` : `${whole.format(wh)} Wh`);
const money = (cent) => (cent == null ? '–' : (cent / 100).toFixed(2));

/** Seconds as `1 h 02 min`, `3 min 20 s`. */
function lasting(seconds) {
  if (seconds == null) return '–';
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3_600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86_400) return `${Math.floor(s / 3_600)} h ${two(Math.floor((s % 3_600) / 60))} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3_600)} h`;
}

function clock(at, millis = false) {
  const t = new Date(at);
  const text = `${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}`;
  return millis ? `${text}.${String(t.getMilliseconds()).padStart(3, '0')}` : text;
}

function day(at) {
  const t = new Date(at);
  return `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}`;
}

/** The time, with the day where it is not today's. */
const moment = (at) => (at == null ? '–' : day(at) === day(gatewayNow()) ? clock(at) : `${day(at)} ${clock(at)}`);

/** How long ago, by the gateway's clock. */
function ago(at) {
  if (at == null) return 'never';
  const seconds = (gatewayNow() - Date.parse(at)) / 1_000;
  if (seconds < 1.5) return 'now';
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129_600) return `${Math.round(seconds / 3_600)} h ago`;
  return `${Math.round(seconds / 86_400)} d ago`;
}

/** A time element whose text is set by `how`. */
function timeNode(how = ago) {
  const node = h('time');
  return { node, set(at) { attr(node, 'datetime', at); attr(node, 'title', at); say(node, how(at)); } };
}

const spaced = (word) => (word == null ? '–' : String(word).replaceAll('_', ' '));
const hex = (text) => (text ?? '').replaceAll(' ', '').replace(/(..)(?=.)/g, '$1 ');
const PROTOCOLS = { ap3000: 'AP3000', bkv: 'BKV', gn: 'GN' };

const COLOURS = {
  pending: 'grey', confirmed: 'amber', charging: 'blue', completed: 'green', cancelled: 'grey', stopped: 'green', failed: 'red', timeout: 'red',
  cancelling: 'amber', stopping: 'amber', interrupted: 'amber',
  idle: 'grey', occupied: 'amber', fault: 'red', finished: 'amber', unknown: 'grey',
  queued: 'grey', claimed: 'amber', written: 'amber', acked: 'green', refused: 'red', expired: 'red', withdrawn: 'grey', dead: 'red',
  delivering: 'green', disabled: 'red', elsewhere: 'grey', stopped_here: 'grey', delivered: 'green', retry: 'amber',
  online: 'green', offline: 'grey', ready: 'green', draining: 'amber', closed: 'green', open: 'red', half_open: 'amber',
};

/** A word with the colour of its meaning. */
function badge(word) {
  const node = h('span', { class: 'badge' });
  const set = (to, colour = COLOURS[to]) => {
    say(node, spaced(to));
    attr(node, 'class', `badge ${colour ?? ''}`);
  };
  if (word != null) set(word);
  return { node, set };
}

/** An object as a list of facts; what is nested keeps its path. */
function facts(object, skip = []) {
  const list = h('dl', { class: 'facts' });
  const walk = (value, path) => {
    if (value === null || value === undefined || value === '' || skip.includes(path)) return;
    if (typeof value === 'object' && !Array.isArray(value)) {
      for (const [name, inner] of Object.entries(value)) walk(inner, path ? `${path}.${name}` : name);
      return;
    }
    const last = path.split('.').at(-1);
    let shown;
    if (last === 'raw' || last === 'frame') shown = h('div', { class: 'hex' }, hex(String(value)));
    else if (Array.isArray(value) && value.every((line) => typeof line === 'string')) shown = value.map((line) => h('div', null, line));
    else shown = typeof value === 'object' ? h('code', null, JSON.stringify(value)) : String(value);
    list.append(h('dt', null, spaced(path)), h('dd', null, shown));
  };
  walk(object, '');
  return list;
}
