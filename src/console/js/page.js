// The frame of the page: navigation, search, keyboard, theme, dialogs, and the clock that asks the views to look again.

const POLL_MS = 2_000;
const POLL_MS_MAX = 30_000;

const app = document.getElementById('app');
const toasts = document.getElementById('toasts');

// ---- Theme

const darkWanted = matchMedia('(prefers-color-scheme: dark)');
/** `light`, `dark` or null: as the system has it. The only thing that outlives the tab. */
let theme = kept('theme');

function kept(name) {
  try {
    return localStorage.getItem(`chargegate.${name}`);
  } catch {
    return null;
  }
}

function showTheme() {
  document.documentElement.dataset.theme = theme ?? (darkWanted.matches ? 'dark' : 'light');
}

function switchTheme() {
  theme = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
  try {
    localStorage.setItem('chargegate.theme', theme);
  } catch {
    // A browser that keeps nothing keeps no theme.
  }
  showTheme();
}

darkWanted.addEventListener('change', showTheme);

// ---- Toasts and dialogs

function toast(text, { bad = false, link = null } = {}) {
  const node = h('div', { class: `toast ${bad ? 'bad' : ''}` }, text, link && [' ', h('a', { href: link.href }, link.text)]);
  toasts.append(node);
  while (toasts.childElementCount > 4) toasts.firstElementChild.remove();
  setTimeout(() => node.remove(), bad ? 9_000 : 5_000);
}

const wentWrong = (error) => {
  if (error.name === 'AbortError') return;
  toast(said(error), { bad: true });
};

function said(error) {
  if (error instanceof Refused) return error.code ? `${error.message} (${error.code})` : error.message;
  if (error.name === 'TimeoutError') return 'The gateway did not answer in time.';
  if (error instanceof TypeError) return 'The gateway cannot be reached.';
  return error.message;
}

/** Shows a dialog around a form. `submit` may throw: the dialog then stays and says why. Resolves with what it gave, or null. */
function dialog({ title, children = [], action, danger = false, submit, cancel = 'Cancel' }) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    let result = null;
    const wrong = h('p', { class: 'alarm', role: 'alert', hidden: true });
    const go = action && h('button', { class: `btn primary ${danger ? 'danger' : ''}`, type: 'submit' }, action);
    const id = `d${random().slice(0, 8)}`;
    const form = h('form', {
      method: 'dialog', novalidate: false,
      onsubmit: async (event) => {
        event.preventDefault();
        if (!submit) return node.close();
        go.disabled = true;
        wrong.hidden = true;
        try {
          result = (await submit(new FormData(form))) ?? true;
          node.close();
        } catch (error) {
          say(wrong, said(error));
          wrong.hidden = false;
        } finally {
          go.disabled = false;
        }
      },
    },
    h('h2', { id }, title), children, wrong,
    h('div', { class: 'actions' }, h('button', { class: 'btn', type: 'button', onclick: () => node.close() }, cancel), go));
    const node = h('dialog', {
      'aria-labelledby': id,
      onclose: () => {
        node.remove();
        before?.isConnected && before.focus();
        resolve(result);
      },
      onclick: (event) => event.target === node && node.close(),
    }, form);
    document.body.append(node);
    node.showModal();
    (form.querySelector('[autofocus]') ?? form.querySelector('input, select') ?? go)?.focus();
  });
}

/** Asks whether something is to be done, and does it. */
const confirmed = (title, text, action, submit, danger = true) =>
  dialog({ title, children: [h('p', { class: 'muted' }, text)], action, danger, submit });

/** Runs what a button does, once at a time. */
async function doing(button, work) {
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    wentWrong(error);
  } finally {
    button.disabled = false;
  }
}

function button(text, onclick, { kind = '', title = null } = {}) {
  const node = h('button', { class: `btn ${kind}`, type: 'button', title, onclick: () => doing(node, () => onclick(node)) }, text);
  return node;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    toast(`${what} copied`);
  } catch {
    toast('The browser does not let this page copy; select the text instead.', { bad: true });
  }
}

// ---- Tables

/** A table whose rows can be walked with j and k. `columns`: `[title, class]`. */
function table(columns, { label, empty = 'Nothing here.' }) {
  const body = h('tbody');
  const node = h('table', { 'aria-label': label },
    h('thead', null, h('tr', null, columns.map(([title, className]) => h('th', { class: className, scope: 'col' }, title)))), body);
  const none = h('p', { class: 'note', hidden: true }, empty);
  const box = h('div', { class: 'scroll' }, node, none);
  return {
    node: box,
    body,
    set(items, keyOf, make) {
      keyed(body, items, keyOf, make);
      none.hidden = items.length > 0;
      node.hidden = items.length === 0;
    },
    say(text) {
      keyed(body, [], String, null);
      say(none, text);
      none.hidden = false;
      node.hidden = true;
    },
  };
}

/** A row that opens `href` by click and Enter. */
function rowNode(href, cells) {
  return h('tr', {
    class: 'row', tabindex: -1, 'data-href': href,
    onclick: (event) => {
      if (event.target.closest('a, button, input') || getSelection().toString()) return;
      location.hash = href;
    },
  }, cells);
}

function pager(go) {
  const where = h('span');
  const back = h('button', { class: 'btn small', type: 'button', onclick: () => go(-1), 'data-page': -1, 'aria-label': 'Previous page' }, '← Previous');
  const on = h('button', { class: 'btn small', type: 'button', onclick: () => go(1), 'data-page': 1, 'aria-label': 'Next page' }, 'Next →');
  const node = h('div', { class: 'pager' }, where, back, on);
  return {
    node,
    set({ total, page, size }) {
      const pages = Math.max(1, Math.ceil(total / size));
      const first = (page - 1) * size + 1;
      say(where, total ? `${whole.format(Math.min(first, total))}–${whole.format(Math.min(total, page * size))} of ${whole.format(total)}` : '');
      back.disabled = page <= 1;
      on.disabled = page >= pages;
      node.hidden = pages <= 1 && page === 1;
    },
  };
}

// ---- Routes and polling

/** Views: a pattern of the hash's path, and what makes `{title, node, poll}` of its parts and query. */
const routes = [];
const route = (pattern, section, make) => routes.push({ pattern, section, make });

let current = null;

function here() {
  const [path, search = ''] = (location.hash.slice(1) || '/overview').split('?');
  return { path, search: new URLSearchParams(search) };
}

/** Changes the query of the view without opening it anew. */
function requery(values) {
  const { path, search } = here();
  for (const [name, value] of Object.entries(values)) {
    if (value === '' || value == null) search.delete(name);
    else search.set(name, value);
  }
  const text = search.toString();
  history.replaceState(null, '', `#${path}${text ? `?${text}` : ''}`);
}

function open() {
  if (!session) return signInPage();
  const { path, search } = here();
  for (const { pattern, section, make } of routes) {
    const match = path.match(pattern);
    if (!match) continue;
    current?.leave();
    const view = make(match.slice(1).map(decodeURIComponent), search);
    current = polled(view);
    document.title = `${view.title} · chargegate`;
    for (const link of app.querySelectorAll('.nav a')) attr(link, 'aria-current', link.dataset.section === section ? 'page' : null);
    const main = document.getElementById('main');
    main.replaceChildren(view.node);
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
    return undefined;
  }
  location.replace('#/overview');
  return undefined;
}

/** Asks a view to look again every two seconds while somebody can see it; slower while that fails. */
function polled(view) {
  let timer = null;
  let controller = null;
  let failures = 0;
  let left = false;
  async function turn() {
    clearTimeout(timer);
    controller?.abort();
    if (left || document.hidden) return;
    const mine = new AbortController();
    controller = mine;
    let wait = POLL_MS;
    try {
      await view.poll?.(mine.signal);
      if (mine.signal.aborted) return;
      failures = 0;
      pulse('live', 'Live');
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401) return signOut(`The gateway does not accept the key any more: ${error.message}`);
      if (error.status === 404 && view.gone) return view.gone(error);
      failures += 1;
      wait = Math.max(error.retryAfter * 1_000 || 0, Math.min(POLL_MS_MAX, POLL_MS * 2 ** Math.min(failures, 5)));
      pulse(error instanceof Refused ? 'late' : 'failed', `${said(error)} Again in ${Math.round(wait / 1_000)} s.`);
      if (!(error instanceof Refused) && !(error instanceof TypeError) && error.name !== 'TimeoutError') console.error(error);
    }
    timer = setTimeout(turn, wait);
    return undefined;
  }
  const seen = () => {
    if (document.hidden) {
      clearTimeout(timer);
      controller?.abort();
      pulse('paused', 'Paused');
    } else {
      turn();
    }
  };
  document.addEventListener('visibilitychange', seen);
  queueMicrotask(turn);
  return {
    view,
    again: turn,
    leave() {
      left = true;
      clearTimeout(timer);
      controller?.abort();
      document.removeEventListener('visibilitychange', seen);
    },
  };
}

/** Looks again now: something was changed. */
const again = () => current?.again();

function pulse(state, text) {
  const node = document.getElementById('pulse');
  if (!node) return;
  attr(node, 'data-state', state);
  attr(node, 'title', text);
  say(node.querySelector('span'), state === 'live' || state === 'paused' ? text : 'Trying again');
}

// ---- The frame

function frame() {
  const link = (section, text, href = `#/${section}`) => h('a', { href, 'data-section': section }, icon(section), h('span', null, text));
  // In a tab of its own: leaving this page signs out.
  const elsewhere = (href, text) => h('a', { class: 'link', href, target: '_blank', rel: 'noopener' }, text);
  const field = searchField();
  const skip = h('button', { class: 'btn skip', type: 'button', onclick: () => document.getElementById('main').focus() }, 'Skip to the view');
  app.replaceChildren(skip, h('div', { class: 'shell' },
    h('div', { class: 'side' },
      h('a', { class: 'brand', href: '#/overview' }, logo(), 'chargegate'),
      h('nav', { class: 'nav', 'aria-label': 'Views' },
        link('overview', 'Overview'), link('devices', 'Devices'), link('orders', 'Orders'), link('webhooks', 'Webhooks'),
        session.may.admin && link('keys', 'Keys'), link('help', 'Help')),
      h('div', { class: 'foot' },
        h('span', null, `May ${['read', 'control', 'admin'].filter((scope) => session.may[scope]).join(', ')}`),
        h('span', null, elsewhere('/docs', 'API'), ' · ', elsewhere('/metrics', 'Metrics')))),
    h('div', { class: 'grow' },
      h('header', { class: 'top' },
        field,
        h('div', { class: 'pulse', id: 'pulse', 'data-state': 'paused' }, h('i'), h('span', null, 'Connecting')),
        h('button', { class: 'btn plain square', type: 'button', onclick: switchTheme, 'aria-label': 'Light or dark', title: 'Light or dark (t)' }, icon('theme')),
        h('button', { class: 'btn plain square', type: 'button', onclick: () => signOut(), 'aria-label': 'Sign out', title: 'Sign out' }, icon('out'))),
      h('main', { id: 'main', tabindex: -1 }))));
}

/** Finds devices by what is typed, and orders by their number. */
function searchField() {
  const list = h('ul', { class: 'found', id: 'found', role: 'listbox', 'aria-label': 'Found', hidden: true });
  let controller = null;
  let timer = null;
  let at = 0;
  const input = h('input', {
    class: 'field', id: 'search', type: 'search', placeholder: 'Device id, name, number, or order', autocomplete: 'off', spellcheck: 'false',
    role: 'combobox', 'aria-label': 'Search devices and orders', 'aria-expanded': 'false', 'aria-controls': 'found', 'aria-autocomplete': 'list',
    oninput: () => {
      clearTimeout(timer);
      timer = setTimeout(look, 120);
    },
    onkeydown: (event) => {
      const items = [...list.querySelectorAll('[role="option"]')];
      if (event.key === 'Escape') {
        close();
        input.blur();
      } else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
        event.preventDefault();
        mark(items, (at + (event.key === 'ArrowDown' ? 1 : items.length - 1)) % Math.max(1, items.length));
      } else if (event.key === 'Enter') {
        event.preventDefault();
        const text = input.value.trim();
        const href = items[at]?.dataset.href ?? (text && `#/devices?search=${encodeURIComponent(text)}`);
        if (href) choose(href);
      }
    },
    onblur: () => setTimeout(close, 150),
  });
  function mark(items, index) {
    at = index;
    items.forEach((item, n) => attr(item, 'aria-selected', String(n === at)));
    attr(input, 'aria-activedescendant', items[at]?.id);
  }
  function close() {
    controller?.abort();
    list.hidden = true;
    attr(input, 'aria-expanded', 'false');
    attr(input, 'aria-activedescendant', null);
  }
  function choose(href) {
    clearTimeout(timer);
    close();
    input.value = '';
    input.blur();
    location.hash = href;
  }
  async function look() {
    controller?.abort();
    const text = input.value.trim();
    if (!text) return close();
    const mine = new AbortController();
    controller = mine;
    try {
      const [devices, order] = await Promise.all([
        get(`${THIRD}/devices${query({ search: text.slice(0, 64), size: 7 })}`, mine.signal),
        /^[0-9A-Za-z]{16}$/.test(text) ? get(`${THIRD}/orders/${text.toUpperCase()}`, mine.signal).catch((error) => (error.status ? null : Promise.reject(error))) : null,
      ]);
      if (mine.signal.aborted) return undefined;
      const option = (href, ...content) => h('li', { role: 'option', 'data-href': href, onmousedown: (event) => { event.preventDefault(); choose(href); } }, content);
      const items = devices.items.map((device) => option(`#/devices/${device.device_id}`,
        h('span', { class: 'mono' }, device.device_id), h('span', { class: 'muted grow cut' }, called(device)), badge(device.online ? 'online' : 'offline').node));
      if (order) items.unshift(option(`#/orders/${order.order_no}`, h('span', { class: 'mono' }, order.order_no), h('span', { class: 'grow' }), badge(order.status_text).node));
      if (devices.total > devices.items.length) {
        items.push(option(`#/devices?search=${encodeURIComponent(text)}`, h('span', { class: 'muted' }, `All ${whole.format(devices.total)} devices`)));
      }
      items.forEach((item, n) => { item.id = `found-${n}`; });
      list.replaceChildren(...(items.length ? items : [h('li', { class: 'none' }, 'Nothing found.')]));
      mark(items, 0);
      list.hidden = false;
      attr(input, 'aria-expanded', 'true');
    } catch (error) {
      if (!mine.signal.aborted) wentWrong(error);
    }
    return undefined;
  }
  return h('div', { class: 'search', role: 'search' }, icon('search'), input, h('kbd', { 'aria-hidden': 'true' }, '/'), list);
}

// ---- Sign-in

function signInPage(reason = '') {
  current?.leave();
  current = null;
  document.title = 'Sign in · chargegate';
  const wrong = h('p', { class: 'alarm', role: 'alert', hidden: !reason }, reason);
  const key = h('input', { class: 'field', id: 'key', name: 'key', type: 'password', autocomplete: 'off', required: true, spellcheck: 'false' });
  const secret = h('input', { class: 'field', id: 'secret', name: 'secret', type: 'password', autocomplete: 'off', spellcheck: 'false' });
  const more = h('details', null,
    h('summary', null, 'This key has to sign its requests'),
    h('label', { class: 'named' }, 'Signing secret', secret),
    !crypto.subtle && h('p', { class: 'alarm amber' }, UNSAFE));
  const go = h('button', { class: 'btn primary', type: 'submit' }, 'Sign in');
  const form = h('form', {
    onsubmit: async (event) => {
      event.preventDefault();
      wrong.hidden = true;
      go.disabled = true;
      try {
        await signIn(key.value.trim(), secret.value.trim());
        frame();
        open();
      } catch (error) {
        say(wrong, error.status === 401 ? `${error.message}.` : said(error));
        wrong.hidden = false;
        if (/signature|sign|hmac/i.test(error.message)) more.open = true;
        go.disabled = false;
        key.focus();
      }
    },
  },
  h('div', { class: 'brand' }, logo(), 'chargegate'),
  h('label', { class: 'named' }, 'API key', key), more, wrong, go,
  h('p', { class: 'fine' }, 'The key stays in the memory of this tab. It is not stored, and not part of any address; reloading the page signs you out.'));
  app.replaceChildren(h('main', { class: 'signin' }, form));
  key.focus();
}

function signOut(reason) {
  session = null;
  signInPage(reason);
}

// ---- Keyboard

let prefix = 0;

document.addEventListener('keydown', (event) => {
  if (!session || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
  const typing = event.target.closest?.('input, select, textarea, [contenteditable]');
  if (typing) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  const to = { h: '#/overview', d: '#/devices', o: '#/orders', w: '#/webhooks', k: session.may.admin ? '#/keys' : null }[event.key];
  if (performance.now() - prefix < 1_500 && to) {
    prefix = 0;
    event.preventDefault();
    location.hash = to;
    return;
  }
  prefix = 0;
  const handled = {
    '/': () => document.getElementById('search').focus(),
    '?': () => { location.hash = '#/help'; },
    g: () => { prefix = performance.now(); },
    t: switchTheme,
    j: () => walk(1),
    k: () => walk(-1),
    '[': () => document.querySelector('[data-page="-1"]:not(:disabled)')?.click(),
    ']': () => document.querySelector('[data-page="1"]:not(:disabled)')?.click(),
    Enter: () => {
      const row = document.activeElement.closest?.('tr.row');
      if (row && document.activeElement === row) location.hash = row.dataset.href;
      else return true;
      return false;
    },
  }[event.key];
  if (handled && handled() !== true) event.preventDefault();
});

function walk(step) {
  const rows = [...document.querySelectorAll('tr.row')].filter((row) => row.offsetParent);
  const now = rows.indexOf(document.activeElement.closest?.('tr.row'));
  const next = rows[now < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, now + step))];
  next?.focus();
  next?.scrollIntoView({ block: 'nearest' });
}
