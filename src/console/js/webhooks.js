// Webhooks: endpoints, and of one of them its deliveries and dead letters.

const breakerWords = { closed: 'closed', open: 'open: not asked', half_open: 'trying' };
const asList = (data) => (Array.isArray(data) ? { items: data, total: data.length } : data);

const webhookPath = (name, tail = '') => `${ADMIN}/webhooks/${encodeURIComponent(name)}${tail}`;

async function testEndpoint(name) {
  const told = await post(webhookPath(name, '/test'));
  toast(told.delivered ? `${name} took the test event: ${told.status} in ${told.latency_ms} ms.` : `${name} did not take the test event: ${told.reason ?? told.status}.`, { bad: !told.delivered });
  again();
}

const switchEndpoint = (name, on) => confirmed(
  on ? `Deliver to ${name} again?` : `Stop delivering to ${name}?`,
  on ? 'It gets everything since its cursor, in order.' : 'Events stay in the log behind its cursor, as long as the log keeps them.',
  on ? 'Enable' : 'Disable',
  async () => {
    await post(webhookPath(name, on ? '/enable' : '/disable'));
    again();
  },
  !on,
);

const needsAdmin = (what) => h('section', { class: 'card' }, h('p', { class: 'note' }, `${what} need a key with the scope admin.`));

route(/^\/webhooks$/, 'webhooks', () => {
  const head = h('div', { class: 'head' }, h('h1', null, 'Webhooks'));
  if (!session.may.admin) return { title: 'Webhooks', node: h('div', null, head, needsAdmin('Webhooks')), poll: null };
  const rows = table([['Endpoint'], ['State'], ['Breaker'], ['Backlog', 'num'], ['In flight', 'num less'], ['Parked', 'num'], ['Dead', 'num'], ['URL', 'wide less'], ['']], { label: 'Webhook endpoints', empty: 'There are no endpoints. They are made in the configuration or here.' });
  const add = h('button', { class: 'btn primary', type: 'button', onclick: () => newEndpoint() }, 'New endpoint');
  head.append(h('div', { class: 'actions' }, add));
  return {
    title: 'Webhooks',
    node: h('div', null, head, h('section', { class: 'card' }, rows.node)),
    async poll(signal) {
      const told = await getIfThere('webhooks', `${ADMIN}/webhooks`, signal);
      add.hidden = told === undefined;
      if (told === undefined) return rows.say('Webhook endpoints are not available on this gateway.');
      rows.set(asList(told).items, (one) => one.name, ({ name }) => {
        const [state, breaker, backlog, flight, parked, dead, url] = [badge(), badge(), h('td', { class: 'num' }), h('td', { class: 'num less' }), h('td', { class: 'num' }), h('td', { class: 'num' }), h('td', { class: 'wide less muted' })];
        const href = `#/webhooks/${encodeURIComponent(name)}`;
        return {
          node: rowNode(href, [h('td', null, h('a', { href }, name)), h('td', null, state.node), h('td', null, breaker.node), backlog, flight, parked, dead, url,
            h('td', { class: 'num' }, button('Test', () => testEndpoint(name), { kind: 'small', title: `Send ${name} a test event` }))]),
          update(one) {
            const now = one.state ?? {};
            state.set(now.state ?? 'unknown');
            attr(state.node, 'title', now.disabled_reason ?? (now.instance && `delivered by ${now.instance}`));
            breaker.set(breakerWords[now.breaker] ?? '–', COLOURS[now.breaker]);
            say(backlog, number(now.backlog));
            say(flight, number(now.in_flight));
            say(parked, number(now.parked));
            say(dead, number(now.dead));
            say(url, one.url);
            attr(url, 'title', one.url);
          },
        };
      });
      return undefined;
    },
  };
});

function newEndpoint() {
  return dialog({
    title: 'New endpoint',
    children: [
      h('label', { class: 'named' }, 'Name', h('input', { class: 'field', name: 'name', required: true, pattern: '[A-Za-z0-9._~\\-]{1,128}', autocomplete: 'off' })),
      h('label', { class: 'named' }, 'URL', h('input', { class: 'field', name: 'url', type: 'url', required: true, placeholder: 'https://', autocomplete: 'off' })),
      h('label', { class: 'named' }, 'Events', h('input', { class: 'field mono', name: 'events', placeholder: 'order.*, charging.ended', autocomplete: 'off' }), h('small', null, 'Left empty: all but heartbeats and progress.')),
    ],
    action: 'Create',
    async submit(form) {
      const events = form.get('events').split(/[\s,]+/).filter(Boolean);
      const made = await post(`${ADMIN}/webhooks`, { name: form.get('name').trim(), url: form.get('url').trim(), ...(events.length ? { events } : {}) });
      again();
      if (made.secret) setTimeout(() => shownOnce('The endpoint is made', [['Signing secret', made.secret]]));
    },
  });
}

/** Shows what is never shown again. */
const shownOnce = (title, secrets) => dialog({
  title,
  children: [
    h('p', { class: 'muted' }, 'This is shown once. Keep it where secrets are kept.'),
    secrets.map(([name, value]) => h('div', { class: 'named' }, h('span', null, name), h('div', { class: 'secret', tabindex: 0 }, value), h('div', null, button('Copy', () => copy(value, name), { kind: 'small' })))),
  ],
  cancel: 'Done',
});

// ---- One endpoint

route(/^\/webhooks\/([^/]+)$/, 'webhooks', ([name]) => {
  const state = badge();
  const url = h('span', { class: 'sub cut' });
  const list = h('dl', { class: 'stats' });
  const toggle = h('button', { class: 'btn', type: 'button', disabled: true, onclick: () => switchEndpoint(name, toggle.dataset.to === 'on') }, 'Disable');
  const rest = tabs('Of this endpoint', [['dead', 'Dead letters', deadPanel(name)], ['deliveries', 'Deliveries', deliveriesPanel(name)]]);
  const gone = h('p', { class: 'note', hidden: true });
  const body = h('div', { class: 'stack' }, h('section', { class: 'card' }, h('div', { class: 'body' }, list)), rest.node);
  const node = h('div', null,
    h('p', { class: 'crumb' }, h('a', { href: '#/webhooks' }, 'Webhooks')),
    h('div', { class: 'head' }, h('h1', null, name), state.node, url, h('div', { class: 'actions' }, button('Send a test event', () => testEndpoint(name)), toggle)), gone, body);
  return {
    title: name,
    node,
    async poll(signal) {
      const one = await get(webhookPath(name), signal);
      const now = one.state ?? {};
      state.set(now.state ?? 'unknown');
      say(url, one.url);
      const off = now.state === 'disabled';
      toggle.disabled = false;
      attr(toggle, 'data-to', off ? 'on' : 'off');
      say(toggle, off ? 'Enable' : 'Disable');
      const rows = [
        ['Breaker', breakerWords[now.breaker] ?? '–'], ['Backlog', number(now.backlog)], ['In flight', number(now.in_flight)], ['Parked', number(now.parked)], ['Dead letters', number(now.dead)],
        ['Cursor', `${number(now.cursor)} of ${number(now.last_pos)}`], ['Delivered by', now.instance], ['Disabled', now.disabled_at && `${moment(now.disabled_at)}: ${now.disabled_reason ?? 'by an operator'}`],
        ['Events', (one.events ?? []).join(', ')], ['Secrets', one.secrets], ['From', one.source === 'config' ? 'configuration' : 'store'],
      ].filter(([, value]) => value != null && value !== '');
      keyed(list, rows, ([title]) => title, ([title]) => {
        const cell = h('dd');
        return { node: h('div', null, h('dt', null, title), cell), update: ([, value]) => say(cell, value) };
      });
      await rest.poll(signal);
    },
    gone(error) {
      say(gone, error.isUnknownPath ? 'Webhook endpoints are not available on this gateway.' : error.message);
      gone.hidden = false;
      body.hidden = true;
    },
  };
});

const posOf = (row) => row.pos ?? row.position;

function deadPanel(name) {
  const chosen = new Set();
  const all = h('input', { type: 'checkbox', 'aria-label': 'Choose all that are shown' });
  const rows = table([[all], ['Event'], ['Of'], ['Attempts', 'num'], ['Why', 'wide'], ['Position', 'num less'], ['When', 'num']], { label: 'Dead letters', empty: 'No dead letters.' });
  let shown = [];
  const redrive = button('Redrive', () => act('redrive'), { kind: 'small' });
  const purge = button('Purge', () => confirmed('Purge dead letters?', `${chosen.size ? `The ${count(chosen.size, 'chosen one')}` : 'All of them'} will never be delivered. The events stay in the log.`, 'Purge', () => act('purge')), { kind: 'small danger' });
  const marked = () => {
    say(redrive, chosen.size ? `Redrive ${chosen.size}` : 'Redrive all');
    say(purge, chosen.size ? `Purge ${chosen.size}` : 'Purge all');
    redrive.disabled = purge.disabled = shown.length === 0;
    all.checked = shown.length > 0 && shown.every((row) => chosen.has(posOf(row)));
    all.indeterminate = !all.checked && chosen.size > 0;
  };
  all.addEventListener('change', () => {
    for (const row of shown) all.checked ? chosen.add(posOf(row)) : chosen.delete(posOf(row));
    for (const box of rows.body.querySelectorAll('input')) box.checked = all.checked;
    marked();
  });
  async function act(what) {
    const told = await post(webhookPath(name, `/${what}`), chosen.size ? { positions: [...chosen] } : { all: true });
    toast(`${count(told.count, 'dead letter')} ${what === 'redrive' ? 'will be delivered again' : 'purged'}.`);
    chosen.clear();
    again();
  }
  marked();
  return {
    node: rows.node,
    actions: [redrive, purge],
    async poll(signal) {
      const told = await getIfThere('dead letters', webhookPath(name, '/dead?size=200'), signal);
      if (told === undefined) return rows.say('Dead letters are not available on this gateway.');
      shown = asList(told).items;
      for (const pos of chosen) if (!shown.some((row) => posOf(row) === pos)) chosen.delete(pos);
      rows.set(shown, posOf, (row) => {
        const pos = posOf(row);
        const box = h('input', { type: 'checkbox', 'aria-label': `Choose event ${pos}`, checked: chosen.has(pos), onchange: () => { box.checked ? chosen.add(pos) : chosen.delete(pos); marked(); } });
        const at = timeNode(moment);
        const key = row.key ?? row.order_no ?? row.device_id ?? '';
        const why = row.reason ?? row.last_error ?? row.failure ?? '';
        return {
          node: h('tr', null, h('td', null, box), h('td', null, row.event_type ?? '–'), h('td', { class: 'mono' }, key.length === 16 ? h('a', { class: 'link', href: `#/orders/${key}` }, key) : key),
            h('td', { class: 'num' }, number(row.attempts ?? row.attempt)), h('td', { class: 'wide muted', title: why }, why), h('td', { class: 'num less' }, number(pos)), h('td', { class: 'num' }, at.node)),
          update: (to) => at.set(to.dead_at ?? to.at ?? to.updated_at),
        };
      });
      marked();
      return undefined;
    },
  };
}

function deliveriesPanel(name) {
  const rows = table([['When'], ['Event'], ['Of', 'less'], ['Outcome'], ['Status', 'num'], ['Attempt', 'num'], ['Took', 'num'], ['Why', 'wide less']], { label: 'Deliveries', empty: 'Nothing was delivered lately.' });
  const filter = selectFilter('outcome', 'Outcome', [['', 'Any outcome'], ['delivered', 'Delivered'], ['retry', 'To be tried again'], ['dead', 'Dead']]);
  let outcome = '';
  filter.on((to) => {
    outcome = to;
    again();
  });
  return {
    node: rows.node,
    actions: [filter.node],
    async poll(signal) {
      const told = await getIfThere('deliveries', webhookPath(name, `/deliveries${query({ outcome, size: 50 })}`), signal);
      if (told === undefined) return rows.say('Deliveries are not available on this gateway.');
      rows.set(asList(told).items, (row) => `${row.at} ${row.pos} ${row.attempt}`, (row) => {
        const at = timeNode(moment);
        const key = row.key ?? '';
        const done = badge(row.outcome);
        return {
          node: h('tr', null, h('td', null, at.node), h('td', null, row.event_type), h('td', { class: 'mono less' }, key.length === 16 ? h('a', { class: 'link', href: `#/orders/${key}` }, key) : key),
            h('td', null, done.node), h('td', { class: 'num' }, row.status ?? '–'), h('td', { class: 'num' }, number(row.attempt)), h('td', { class: 'num' }, row.latency_ms == null ? '–' : `${number(row.latency_ms)} ms`),
            h('td', { class: 'wide less muted', title: row.reason }, row.reason ?? '')),
          update: (to) => at.set(to.at),
        };
      });
      return undefined;
    },
  };
}
