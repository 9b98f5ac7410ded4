// Orders: the list, and one of them with everything that happened to it.

const STATUSES = ['pending', 'confirmed', 'charging', 'completed', 'cancelled', 'stopped', 'failed', 'timeout', 'cancelling', 'stopping', 'interrupted'];
/** Those after which nothing but a settlement can come. */
const FINAL = new Set(['completed', 'cancelled', 'stopped', 'failed', 'timeout']);

const ORDER_COLUMNS = [['Order'], ['Status'], ['Device', 'device'], ['Port', 'num'], ['Mode', 'less'], ['Charged', 'num less'], ['Energy', 'num'], ['Amount', 'num less'], ['Created', 'num']];

function orderRow({ order_no: no, device_id: device, port_no: port, mode }, withDevice = true) {
  const [status, charged, energy, amount, at] = [badge(), h('td', { class: 'num less' }), h('td', { class: 'num' }), h('td', { class: 'num less' }), timeNode(moment)];
  return {
    node: rowNode(`#/orders/${no}`, [
      h('td', { class: 'mono' }, h('a', { href: `#/orders/${no}` }, no)), h('td', null, status.node),
      withDevice && h('td', { class: 'mono' }, h('a', { href: `#/devices/${device}` }, device)), h('td', { class: 'num' }, port), h('td', { class: 'less' }, spaced(mode)),
      charged, energy, amount, h('td', { class: 'num' }, at.node)]),
    update(order) {
      status.set(order.status_text);
      say(charged, lasting(order.duration_seconds));
      say(energy, kwh(order.energy_wh));
      say(amount, money(order.charged_cent ?? order.amount_cent));
      at.set(order.created_at);
    },
  };
}

function orderTable(label, empty, withDevice) {
  const rows = table(ORDER_COLUMNS.filter(([, kind]) => withDevice || kind !== 'device'), { label, empty });
  return { node: rows.node, set: (items) => rows.set(items, (order) => order.order_no, (order) => orderRow(order, withDevice)) };
}

route(/^\/orders$/, 'orders', (_, search) => {
  const list = listing({
    search,
    filters: [
      selectFilter('status', 'Status', [['', 'Any status'], ...STATUSES.map((status) => [status, status])]),
      textFilter('device_id', 'Device id', 'Device id'),
      textFilter('port_no', 'Port', 'Port'),
    ],
    label: 'Orders',
    empty: 'No order is like that.',
    one: 'order',
    columns: ORDER_COLUMNS,
    keyOf: (order) => order.order_no,
    load: (values, page, signal) => get(`${THIRD}/orders${query({ ...values, page, size: PAGE_SIZE })}`, signal),
    make: (order) => orderRow(order),
  });
  return { title: 'Orders', node: h('div', null, h('div', { class: 'head' }, h('h1', null, 'Orders')), list.node), poll: list.poll };
});

// ---- One order

route(/^\/orders\/([^/]+)$/, 'orders', ([no]) => {
  const path = `${THIRD}/orders/${no}`;
  let order = null;
  const status = badge();
  const where = h('span', { class: 'sub' });
  const list = h('div');
  const line = timeline();
  const steps = stepper();
  const gaps = h('ul', { class: 'gaps', hidden: true, 'aria-label': 'What may be missing' });
  const gone = h('p', { class: 'note', hidden: true });
  const kinds = choiceFilter('kinds', 'What is shown', [['', 'All'], ['command', 'Commands'], ['frame', 'Frames'], ['event', 'Events'], ['delivery', 'Deliveries']]);
  kinds.show('');
  kinds.on((kind) => line.only(kind));
  const change = (what, text) => session.may.control && h('button', {
    class: `btn ${what === 'stop' ? 'danger' : ''}`, type: 'button', hidden: true,
    onclick: () => confirmed(text[0], text[1], text[2], async () => {
      await post(`${path}/${what}`);
      toast(`The ${what} is on its way.`);
      again();
    }),
  }, text[2]);
  const stop = change('stop', ['Stop this order?', 'The charge ends, and what it used is settled.', 'Stop']);
  const cancel = change('cancel', ['Cancel this order?', 'It ends without a charge, or at once if it charges already.', 'Cancel order']);
  const body = h('div', { class: 'two' },
    h('section', { class: 'card' }, h('header', null, h('h2', null, 'What happened'), h('div', { class: 'actions' }, kinds.node)), steps.node, line.node, gaps),
    h('section', { class: 'card' }, h('header', null, h('h2', null, 'Order')), h('div', { class: 'body' }, list)));
  const node = h('div', null,
    h('p', { class: 'crumb' }, h('a', { href: '#/orders' }, 'Orders')),
    h('div', { class: 'head' }, h('h1', { class: 'mono' }, no), status.node, where,
      h('div', { class: 'actions' }, cancel, stop)), gone, body);
  let shown = '';

  function show() {
    status.set(order.status_text);
    if (!where.childElementCount) where.append(h('a', { class: 'link mono', href: `#/devices/${order.device_id}` }, order.device_id), ` · port ${order.port_no}`);
    const ended = FINAL.has(order.status_text);
    if (stop) stop.hidden = ended || !['confirmed', 'charging', 'interrupted'].includes(order.status_text);
    if (cancel) cancel.hidden = ended || !['pending', 'confirmed'].includes(order.status_text);
    const rows = [
      ['Mode', spaced(order.mode)], ['Created', moment(order.created_at)], ['Started', order.start_time && moment(order.start_time)], ['Ended', order.end_time && moment(order.end_time)],
      ['Charged', order.duration_seconds != null && lasting(order.duration_seconds)], ['Energy', order.energy_wh != null && kwh(order.energy_wh)],
      ['Paid', order.paid_cent != null && money(order.paid_cent)], ['Amount', order.amount_cent != null && money(order.amount_cent)], ['Price', order.price_cent != null && money(order.price_cent)],
      ['Card', order.card_no], ['Held', order.hold_cent != null && money(order.hold_cent)], ['From the card', order.charged_cent != null && money(order.charged_cent)], ['Unpaid', order.unpaid_cent ? money(order.unpaid_cent) : null],
      ['End reason', order.end_reason && `${spaced(order.end_reason)}${order.end_reason_raw != null ? ` (${order.end_reason_raw})` : ''}`],
      ['Failure', order.failure_reason && spaced(order.failure_reason)], ['Business number', order.business_no], ['Updated', moment(order.updated_at)],
    ].filter(([, value]) => value != null && value !== false && value !== '');
    const text = JSON.stringify(rows);
    if (text === shown) return;
    shown = text;
    list.replaceChildren(h('dl', { class: 'facts' }, rows.map(([title, value]) => [h('dt', null, title), h('dd', null, value)])));
  }

  return {
    title: no,
    node,
    async poll(signal) {
      order = await get(path, signal);
      show();
      const proof = await getIfThere('proof', `${path}/proof`, signal);
      line.set(proof ? proof.entries : (await get(`${path}/events?size=200`, signal)).items.map(asEntry), order.created_at);
      steps.set(proof?.summary);
      const lacking = (proof?.gaps ?? []).map((gap) => gap.text);
      if (proof?.truncated) lacking.push('There is more than is shown.');
      keyed(gaps, lacking, (text) => text, (text) => ({ node: h('li', null, text), update() {} }));
      gaps.hidden = lacking.length === 0;
    },
    gone(error) {
      say(gone, error.message);
      gone.hidden = false;
      body.hidden = true;
    },
  };
});

/** An event of the log as an entry of a timeline, for gateways without proofs. */
const asEntry = (event) => ({ at: event.timestamp, kind: 'event', title: event.event_type, ...event });

const STEPS = [['requested_at', 'Requested'], ['sent_at', 'Sent'], ['acked_at', 'Acknowledged'], ['started_at', 'Charging'], ['ended_at', 'Ended'], ['settled_at', 'Settled'], ['delivered_at', 'Delivered']];

/** The gist of an order: how far it came, and how long each step took. */
function stepper() {
  const cells = STEPS.map(([, title]) => {
    const took = h('span', { class: 'muted' });
    return { took, node: h('li', null, h('b', null, title), took) };
  });
  const node = h('ol', { class: 'steps', 'aria-label': 'How far it came', hidden: true }, cells.map((cell) => cell.node));
  return {
    node,
    set(summary) {
      node.hidden = !summary;
      if (!summary) return;
      let before = null;
      STEPS.forEach(([name], n) => {
        const at = summary[name];
        attr(cells[n].node, 'class', at ? 'done' : null);
        attr(cells[n].node, 'title', at);
        const ms = at && before ? Date.parse(at) - Date.parse(before) : null;
        const resent = name === 'sent_at' && summary.sends > 1 ? ` · ${summary.sends} times` : '';
        say(cells[n].took, !at ? '–' : ms == null ? clock(at, true) : `${ms < 0 ? '−' : '+'}${Math.abs(ms) < 1_000 ? `${Math.abs(ms)} ms` : lasting(Math.abs(ms) / 1_000)}${resent}`);
        before = at ?? before;
      });
    },
  };
}

const KINDS = { request: 'Request', command: 'Command', frame: 'Frame', settlement: 'Settlement', event: 'Event', delivery: 'Delivery' };

/** Everything that happened, oldest first; what is behind an entry is folded. */
function timeline() {
  const list = h('ol', { class: 'timeline', 'aria-label': 'Timeline' });
  const none = h('p', { class: 'note', hidden: true }, 'Nothing of that kind.');
  let last = [[], null];
  let kind = '';
  const self = {
    node: h('div', null, list, none),
    only(wanted) {
      kind = wanted;
      self.set(...last);
    },
    set(entries, from) {
      last = [entries, from];
      const times = new Map();
      const rows = entries.map((entry) => {
        const name = `${entry.at} ${entry.kind} ${entry.title}`;
        times.set(name, (times.get(name) ?? 0) + 1);
        return { entry, key: `${name} ${times.get(name)} ${entry.kind === 'command' || entry.kind === 'delivery' ? hashOf(entry) : ''}` };
      }).filter(({ entry }) => !kind || entry.kind === kind);
      none.hidden = rows.length > 0;
      keyed(list, rows, (row) => row.key, ({ entry }) => {
        const after = (Date.parse(entry.at) - Date.parse(from ?? entry.at)) / 1_000;
        const { at, kind: what, title, ...rest } = entry;
        // What the entry is about stands under the name of its kind.
        const { explained, raw, ...about } = entry[what] ?? rest;
        const bad = what === 'delivery' && about.outcome !== 'delivered';
        const arrow = what === 'frame' && { up: ' ↑', down: ' ↓' }[about.direction];
        const open = h('div');
        const details = h('details', {
          // What nobody opens is not made.
          ontoggle: () => {
            if (!details.open || open.childElementCount) return;
            open.append(explained?.length ? h('div', { class: 'lines' }, explained.join('\n')) : '', raw ? h('div', { class: 'hex' }, hex(raw)) : '', facts(about));
          },
        },
        h('summary', null, h('span', { class: 'kind' }, KINDS[what] ?? what, arrow), h('span', { class: 'title' }, title)),
        open);
        return {
          node: h('li', { 'data-kind': what, 'data-bad': bad },
            h('div', { class: 'when' }, h('b', null, h('time', { datetime: at, title: at }, clock(at, true))), `${after < 0 ? '−' : '+'}${Math.abs(after).toFixed(3)} s`),
            h('div', { class: 'rail', 'aria-hidden': 'true' }),
            h('div', { class: 'what' }, details)),
          update() {},
        };
      });
    },
  };
  return self;
}
