// Devices: the list, and one of them with its ports, parameters, frames and commands.

const called = (device) => device.name || (device.printed_no != null ? `No. ${device.printed_no}` : '');

const PAGE_SIZE = 50;

/** A list with filters in the address, pages, and rows that stay in place. `load(values, page, signal)` gives `{items, total}`. */
function listing({ filters, columns, label, empty, load, keyOf, make, one, search }) {
  const rows = table(columns, { label, empty });
  const total = h('span', { class: 'count', role: 'status' });
  const pages = pager((step) => {
    requery({ page: pageNow() + step > 1 ? pageNow() + step : '' });
    changed();
  });
  const box = h('section', { class: 'card' }, h('div', { class: 'tools' }, filters.map((filter) => filter.node), total), rows.node, pages.node);
  const pageNow = () => Number(here().search.get('page')) || 1;
  const values = () => Object.fromEntries(filters.map((filter) => [filter.name, here().search.get(filter.name) ?? '']));
  const changed = () => {
    box.classList.add('busy');
    again();
  };
  for (const filter of filters) {
    filter.show(search.get(filter.name) ?? '');
    filter.on((value) => {
      requery({ [filter.name]: value, page: '' });
      changed();
    });
  }
  return {
    node: box,
    async poll(signal) {
      const page = pageNow();
      const asked = JSON.stringify(values());
      let list;
      try {
        list = await load(values(), page, signal);
      } catch (error) {
        // A filter that the gateway does not take is the reader's to change, not the poll's to repeat.
        if (error.status !== 400) throw error;
        box.classList.remove('busy');
        say(total, '');
        return rows.say(error.message);
      }
      if (asked !== JSON.stringify(values()) || page !== pageNow()) return undefined;
      box.classList.remove('busy');
      rows.set(list.items, keyOf, make);
      say(total, count(list.total, one));
      pages.set({ total: list.total, page, size: PAGE_SIZE });
      return undefined;
    },
  };
}

function textFilter(name, label, placeholder) {
  const input = h('input', { class: 'field', type: 'search', 'aria-label': label, placeholder, autocomplete: 'off', spellcheck: 'false' });
  let timer = null;
  return {
    name,
    node: input,
    show: (value) => { input.value = value; },
    on: (then) => input.addEventListener('input', () => {
      clearTimeout(timer);
      timer = setTimeout(() => then(input.value.trim()), 180);
    }),
  };
}

function choiceFilter(name, label, choices) {
  const buttons = choices.map(([value, text]) => h('button', { type: 'button', 'data-value': value, 'aria-pressed': 'false' }, text));
  const show = (value) => buttons.forEach((one) => attr(one, 'aria-pressed', String(one.dataset.value === value)));
  return {
    name,
    node: h('div', { class: 'segments', role: 'group', 'aria-label': label }, buttons),
    show,
    on: (then) => buttons.forEach((one) => one.addEventListener('click', () => {
      show(one.dataset.value);
      then(one.dataset.value);
    })),
  };
}

function selectFilter(name, label, choices) {
  const select = h('select', { class: 'field', 'aria-label': label }, choices.map(([value, text]) => h('option', { value }, text)));
  return {
    name,
    node: select,
    show: (value) => { select.value = value; },
    on: (then) => select.addEventListener('change', () => then(select.value)),
  };
}

/** A square per port, coloured by what it does. */
function cells() {
  const node = h('span', { class: 'cells', role: 'img' });
  return {
    node,
    set(ports) {
      const shown = ports.slice(0, 32);
      while (node.childElementCount > shown.length) node.lastElementChild.remove();
      while (node.childElementCount < shown.length) node.append(h('i'));
      shown.forEach((port, n) => attr(node.children[n], 'class', port.status_text));
      const charging = ports.filter((port) => port.status_text === 'charging').length;
      const text = ports.length ? `${count(ports.length, 'port')}, ${charging} charging` : 'no ports known';
      attr(node, 'aria-label', text);
      attr(node, 'title', text);
    },
  };
}

route(/^\/devices$/, 'devices', (_, search) => {
  const list = listing({
    search,
    filters: [
      textFilter('search', 'Id, name or printed number', 'Id, name or number'),
      choiceFilter('online', 'Online', [['', 'All'], ['true', 'Online'], ['false', 'Offline']]),
      choiceFilter('protocol', 'Protocol', [['', 'Any'], ['ap3000', 'AP3000'], ['bkv', 'BKV'], ['gn', 'GN']]),
    ],
    label: 'Devices',
    empty: 'No device is like that.',
    one: 'device',
    columns: [['Device'], ['Name or number', 'less'], ['State'], ['Protocol', 'less'], ['Score', 'num'], ['Ports', ''], ['Signal', 'num less'], ['Seen', 'num less']],
    keyOf: (device) => device.device_id,
    load: (values, page, signal) => get(`${THIRD}/devices${query({ ...values, page, size: PAGE_SIZE })}`, signal),
    make: ({ device_id: id }) => {
      const [name, state, protocol, score, ports, signal, seen] = [h('td', { class: 'less' }), badge(), h('td', { class: 'less' }), h('td', { class: 'num' }), cells(), h('td', { class: 'num less' }), timeNode()];
      return {
        node: rowNode(`#/devices/${id}`, [h('td', { class: 'mono' }, h('a', { href: `#/devices/${id}` }, id)), name, h('td', null, state.node), protocol, score, h('td', null, ports.node), signal, h('td', { class: 'num less' }, seen.node)]),
        update(device) {
          say(name, called(device));
          state.set(device.online ? 'online' : 'offline');
          say(protocol, PROTOCOLS[device.protocol] ?? device.protocol);
          say(score, device.score);
          ports.set(device.ports);
          say(signal, device.signal ?? '–');
          seen.set(device.last_seen_at);
        },
      };
    },
  });
  return { title: 'Devices', node: h('div', null, h('div', { class: 'head' }, h('h1', null, 'Devices')), list.node), poll: list.poll };
});

// ---- One device

/** Parts of the score in words. */
function scoreWords(parts) {
  return [
    parts.alive ? `+${parts.alive} a frame came in time` : '0 no frame came in time',
    parts.tcp_down && `−${Math.abs(parts.tcp_down)} its connection broke lately`,
    parts.ack_timeout && `−${Math.abs(parts.ack_timeout)} a command was not acknowledged lately`,
  ].filter(Boolean);
}

/** Tabs whose panels look again by themselves. `panels`: `[id, title, {node, poll}]`. */
function tabs(label, panels) {
  const id = `t${random().slice(0, 6)}`;
  const buttons = panels.map(([name, title], n) => h('button', {
    type: 'button', role: 'tab', id: `${id}-${name}`, 'aria-controls': `${id}-panel`,
    onclick: () => choose(n),
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      choose((n + step + panels.length) % panels.length);
      buttons[(n + step + panels.length) % panels.length].focus();
    },
  }, title));
  const panel = h('div', { role: 'tabpanel', id: `${id}-panel` });
  const wrong = h('p', { class: 'note', hidden: true });
  const actions = h('div', { class: 'actions' });
  let chosen = -1;
  function choose(n) {
    if (n === chosen) return;
    chosen = n;
    buttons.forEach((one, index) => {
      attr(one, 'aria-selected', String(index === n));
      attr(one, 'tabindex', index === n ? 0 : -1);
    });
    attr(panel, 'aria-labelledby', buttons[n].id);
    panel.hidden = false;
    wrong.hidden = true;
    panel.replaceChildren(panels[n][2].node);
    actions.replaceChildren(...(panels[n][2].actions ?? []));
    again();
  }
  const node = h('section', { class: 'card' }, h('header', null, h('div', { class: 'segments', role: 'tablist', 'aria-label': label }, buttons), actions), panel, wrong);
  choose(0);
  return {
    node,
    async poll(signal) {
      const asked = chosen;
      try {
        await panels[asked][2].poll(signal);
        wrong.hidden = true;
        panel.hidden = false;
      } catch (error) {
        // What a panel cannot have is the panel's matter; what stands above goes on.
        if (!(error instanceof Refused) || [401, 429].includes(error.status) || error.status >= 500) throw error;
        if (asked !== chosen) return;
        say(wrong, `${error.message}.`);
        wrong.hidden = false;
        panel.hidden = true;
      }
    },
  };
}

route(/^\/devices\/([^/]+)$/, 'devices', ([id]) => {
  const path = `${THIRD}/devices/${id}`;
  let device = null;
  let link = null;
  let turns = 0;
  const state = badge();
  const name = h('span', { class: 'sub' });
  const score = h('b');
  const words = h('ul');
  const list = h('dl', { class: 'facts' });
  const ports = h('div', { class: 'ports' });
  const noPorts = h('p', { class: 'note', hidden: true }, 'The device has told of no ports yet.');
  const gone = h('p', { class: 'note', hidden: true });
  const start = session.may.control && h('button', { class: 'btn primary', type: 'button', onclick: () => startCharge(device) }, 'Start a charge');
  const locate = session.may.control && button('Query status', async () => {
    const told = await post(`${path}/commands`, id.length === 8 ? { command: 'query_status' } : { command: 'query_socket', socket: device?.ports[0]?.socket ?? 0 });
    toast(`Command ${told.command_id} is queued.`);
    again();
  });
  const hangUp = session.may.admin && h('button', {
    class: 'btn danger', type: 'button',
    onclick: () => confirmed('Close the connection?', 'The device connects again by itself. Orders go on; commands on their way are sent again.', 'Disconnect', async () => {
      await post(`${ADMIN}/devices/${id}/disconnect`);
      toast('The connection is closed.');
      again();
    }),
  }, 'Disconnect');
  const below = tabs('More of the device', [['commands', 'Commands', commandsPanel(path)], ['orders', 'Orders', ordersPanel(id)], ['params', 'Parameters', paramsPanel(path, id)], session.may.admin && ['frames', 'Frames', framesPanel(id)]].filter(Boolean));
  const body = h('div', { class: 'stack' },
    h('div', { class: 'two' },
      h('section', { class: 'card' }, h('header', null, h('h2', null, 'Ports')), ports, noPorts),
      h('section', { class: 'card' }, h('header', null, h('h2', null, 'Online score')), h('div', { class: 'body stack' }, h('div', { class: 'score' }, score, words), list))),
    below.node);
  const node = h('div', null,
    h('p', { class: 'crumb' }, h('a', { href: '#/devices' }, 'Devices')),
    h('div', { class: 'head' }, h('h1', { class: 'mono' }, id), state.node, name, h('div', { class: 'actions' }, locate, hangUp, start)), gone, body);

  function show() {
    state.set(device.online ? 'online' : 'offline');
    say(name, [PROTOCOLS[device.protocol], called(device)].filter(Boolean).join(' · '));
    say(score, device.score);
    keyed(words, scoreWords(device.score_parts), (line) => line, (line) => ({ node: h('li', null, line), update() {} }));
    const rows = [
      ['Last seen', ago(device.last_seen_at), device.last_seen_at], ['Connected', device.online ? moment(device.connected_at) : null, device.connected_at],
      ['Instance', device.instance], ['Signal', device.signal], ['Firmware', device.firmware], ['Module', device.module_version],
      ['ICCID', device.iccid], ['IMEI', device.imei], ['Printed number', device.printed_no], ['Name', device.name],
      ['Extensions', device.extensions ? 'allowed' : null],
      ['Peer', link?.peer], ['Received', link && `${number(link.bytes_in)} bytes`, link && `${number(link.garbage_bytes)} of them no frame`], ['Sent', link && `${number(link.bytes_out)} bytes`],
    ].filter(([, value]) => value != null && value !== '');
    keyed(list, rows.flatMap(([title, value, long]) => [{ key: `${title}?`, title }, { key: title, value, long }]), (row) => row.key, (row) => {
      const cell = h(row.title ? 'dt' : 'dd');
      return { node: cell, update: (now) => { say(cell, now.title ?? now.value); attr(cell, 'title', now.long); } };
    });
    noPorts.hidden = device.ports.length > 0;
    keyed(ports, device.ports, (port) => port.port_no, (port) => portCard(port.port_no, () => device));
    ports.hidden = device.ports.length === 0;
    if (start) start.disabled = !device.online || device.ports.length === 0;
    if (hangUp) hangUp.disabled = !device.connected_at;
  }

  return {
    title: id,
    node,
    async poll(signal) {
      device = await get(path, signal);
      show();
      if (session.may.admin && turns++ % 3 === 0) {
        link = (await getIfThere('connections', `${ADMIN}/connections${query({ device_id: id, size: 1 })}`, signal))?.items[0] ?? null;
      }
      await below.poll(signal);
    },
    gone(error) {
      say(gone, error.message);
      gone.hidden = false;
      body.hidden = true;
      if (start) start.disabled = true;
    },
  };
});

function portCard(no, device) {
  const state = badge();
  const power = document.createTextNode('');
  const cell = (title) => {
    const dd = h('dd');
    return { node: h('div', null, h('dt', null, title), dd), set: (text) => say(dd, text) };
  };
  const [current, voltage, energy, charged] = [cell('Current'), cell('Voltage'), cell('Energy'), cell('Charged')];
  const order = h('a', { class: 'mono link', hidden: true });
  const act = session.may.control && button('Start', () => (act.dataset.stops ? stopPort(device(), no) : startCharge(device(), no)), { kind: 'small' });
  const where = h('span', { class: 'muted' });
  const node = h('article', { class: 'port', 'aria-label': `Port ${no}` },
    h('header', null, `Port ${no}`, where, state.node), h('div', { class: 'watts' }, power),
    h('dl', null, current.node, voltage.node, energy.node, charged.node), h('footer', null, order, act));
  return {
    node,
    update(port) {
      attr(node, 'data-status', port.status_text);
      state.set(port.status_text);
      attr(state.node, 'title', `raw status ${port.raw_status}, ${port.updated_at ? `told ${ago(port.updated_at)}` : 'not told yet'}`);
      say(where, port.socket != null ? `socket ${port.socket}, hole ${port.hole}` : '');
      const text = watts(port.power_dw);
      if (power.data !== text) power.data = text;
      current.set(`${hundredths.format(port.current_ma / 1_000)} A`);
      voltage.set(`${tenths.format(port.voltage_dv / 10)} V`);
      energy.set(kwh(port.energy_wh));
      charged.set(lasting(port.charged_seconds));
      order.hidden = !port.order_no;
      if (port.order_no) {
        attr(order, 'href', `#/orders/${port.order_no}`);
        say(order, port.order_no);
      }
      if (act) {
        act.textContent !== (port.order_no ? 'Stop' : 'Start') && say(act, port.order_no ? 'Stop' : 'Start');
        attr(act, 'data-stops', port.order_no ? '1' : null);
        attr(act, 'class', `btn small ${port.order_no ? 'danger' : ''}`);
        act.disabled = !port.order_no && !device().online;
      }
    },
  };
}

const stopPort = (device, portNo) => confirmed(`Stop what runs on port ${portNo}?`, `The charge on port ${portNo} of ${device.device_id} ends, and what it used is settled.`, 'Stop the charge', async () => {
  const told = await post(`${THIRD}/devices/${device.device_id}/stop`, { port_no: portNo });
  toast('The stop is on its way.', { link: { href: `#/orders/${told.order_no}`, text: told.order_no } });
  again();
});

/** The form of a charge: what both protocol families can do. Tiers and service fees are for the API. */
function startCharge(device, portNo = null) {
  const free = device.ports.filter((port) => !port.order_no);
  const ap3000 = device.protocol === 'ap3000';
  const port = h('select', { class: 'field', name: 'port' }, (free.length ? free : device.ports).map((one) => h('option', { value: one.port_no }, `Port ${one.port_no} · ${spaced(one.status_text)}`)));
  if (portNo) port.value = portNo;
  const amount = h('input', { class: 'field', name: 'amount', type: 'number', inputmode: 'numeric', required: true, min: 1 });
  const unit = document.createTextNode('');
  const named = h('label', { class: 'named' }, h('span', null, unit), amount);
  const mode = h('select', { class: 'field', name: 'mode', onchange: () => shown() },
    [['time', 'For a time'], ['energy', 'For an amount of energy'], ap3000 && ['full', 'Until it is full']].filter(Boolean).map(([value, text]) => h('option', { value }, text)));
  const paid = h('input', { class: 'field', name: 'paid', type: 'number', min: 0, step: '0.01', inputmode: 'decimal', placeholder: 'none' });
  function shown() {
    const energy = mode.value === 'energy';
    named.hidden = mode.value === 'full';
    amount.disabled = named.hidden;
    unit.data = energy ? 'Energy, Wh' : 'Minutes';
    amount.value = energy ? 1_000 : 60;
    attr(amount, 'max', energy ? (ap3000 ? 655_350 : 65_535) : ap3000 ? 1_092 : 900);
    attr(amount, 'step', energy && ap3000 ? 10 : 1);
    attr(amount, 'min', energy && ap3000 ? 10 : 1);
  }
  shown();
  const once = random();
  return dialog({
    title: `Start a charge at ${device.device_id}`,
    children: [
      h('div', { class: 'row2' }, h('label', { class: 'named' }, 'Port', port), h('label', { class: 'named' }, 'How long', mode)),
      h('div', { class: 'row2' }, named, h('label', { class: 'named' }, 'Paid', paid)),
    ],
    action: 'Start',
    async submit() {
      const body = { port_no: Number(port.value), mode: mode.value };
      if (mode.value === 'time') body.duration_minutes = Number(amount.value);
      if (mode.value === 'energy') body.energy_wh = Number(amount.value);
      if (paid.value !== '') body.paid_cent = Math.round(Number(paid.value) * 100);
      const told = await post(`${THIRD}/devices/${device.device_id}/charge`, body, { once: `${once}${hashOf(body)}` });
      toast('The start is on its way.', { link: { href: `#/orders/${told.order_no}`, text: told.order_no } });
      again();
    },
  });
}

/** Tells two bodies of the same form apart: a changed one is another request. */
const hashOf = (value) => [...JSON.stringify(value)].reduce((sum, char) => (sum * 31 + char.charCodeAt(0)) >>> 0, 7).toString(36);

function commandsPanel(path) {
  const rows = table([['Command'], ['State'], ['Port', 'num'], ['Attempts', 'num less'], ['Order', 'less'], ['Result', 'wide'], ['Updated', 'num']], { label: 'Commands', empty: 'No command was sent to it lately.' });
  return {
    node: rows.node,
    async poll(signal) {
      const list = await get(`${path}/commands?size=20`, signal);
      rows.set(list.items, (one) => one.command_id, () => {
        const [name, state, port, attempts, order, result, at] = [h('td'), badge(), h('td', { class: 'num' }), h('td', { class: 'num less' }), h('a', { class: 'mono' }), h('td', { class: 'wide muted' }), timeNode()];
        return {
          node: h('tr', null, name, h('td', null, state.node), port, attempts, h('td', { class: 'less' }, order), result, h('td', { class: 'num' }, at.node)),
          update(one) {
            say(name, spaced(one.command));
            state.set(one.state);
            say(port, one.port_no ?? '–');
            say(attempts, one.attempts);
            say(order, one.order_no ?? '–');
            attr(order, 'href', one.order_no && `#/orders/${one.order_no}`);
            const text = one.reason ?? (one.result ? JSON.stringify(one.result) : '');
            say(result, text);
            attr(result, 'title', text);
            at.set(one.updated_at);
          },
        };
      });
    },
  };
}

function ordersPanel(id) {
  const rows = orderTable(`Orders of ${id}`, 'It had no orders.', false);
  return {
    node: rows.node,
    async poll(signal) {
      rows.set((await get(`${THIRD}/orders${query({ device_id: id, size: 20 })}`, signal)).items);
    },
  };
}

function paramsPanel(path, id) {
  const rows = table([['Parameter'], ['Socket', 'num'], ['Desired'], ['Reported'], ['State'], ['Reported at', 'num less'], ['']], { label: 'Parameters', empty: 'None are known. Read them from the device, or set one.' });
  const gateway = id.length === 14;
  const shown = (value) => (value == null ? '–' : typeof value === 'object' ? JSON.stringify(value) : String(value));
  let known = [];
  const set = (name = '', value = null, socket = null) => {
    const field = h('input', { class: 'field mono', name: 'value', required: true, value: value == null ? '' : shown(value), autocomplete: 'off' });
    return dialog({
      title: name ? `Set ${name}` : 'Set a parameter',
      children: [
        h('label', { class: 'named' }, 'Parameter', h('input', { class: 'field mono', name: 'name', required: true, value: name, list: 'param-names', autocomplete: 'off' }), h('datalist', { id: 'param-names' }, known.map((one) => h('option', { value: one })))),
        gateway && h('label', { class: 'named' }, 'Socket', h('input', { class: 'field', name: 'socket', type: 'number', min: 0, max: 250, required: true, value: socket ?? 0 }), h('small', null, '0 is the device as a whole.')),
        h('label', { class: 'named' }, 'Value', field, h('small', null, 'A number, true or false, text, or JSON.')),
      ],
      action: 'Set',
      async submit(form) {
        const text = form.get('value').trim();
        let read = text;
        try {
          read = JSON.parse(text);
        } catch {
          // What is no JSON is text.
        }
        await post(`${path}/params`, { params: { [form.get('name').trim()]: read }, ...(gateway ? { socket: Number(form.get('socket')) } : {}) });
        toast('The value is on its way to the device.');
        again();
      },
    });
  };
  const actions = session.may.control ? [
    button('Read from the device', async () => {
      await post(`${path}/params`, gateway ? { refresh: true, socket: 0 } : { refresh: true });
      toast('The device is asked.');
      again();
    }, { kind: 'small' }),
    button('Set …', () => set(), { kind: 'small' }),
  ] : [];
  return {
    node: rows.node,
    actions,
    async poll(signal) {
      const { params } = await get(`${path}/params`, signal);
      known = [...new Set(params.map((one) => one.name))];
      rows.set(params, (one) => `${one.name} ${one.socket}`, (one) => {
        const [desired, reported, state, at] = [h('td', { class: 'mono' }), h('td', { class: 'mono' }), badge(), timeNode()];
        let now = one;
        return {
          node: h('tr', null, h('td', { class: 'mono' }, one.name), h('td', { class: 'num' }, one.socket ?? '–'), desired, reported, h('td', null, state.node), h('td', { class: 'num less' }, at.node),
            h('td', { class: 'num' }, session.may.control && button('Set', () => set(now.name, now.desired ?? now.reported, now.socket), { kind: 'small plain' }))),
          update(row) {
            now = row;
            say(desired, shown(row.desired));
            say(reported, shown(row.reported));
            state.set(row.refused ? `refused: ${row.refused}` : row.pending ? 'pending' : row.desired == null ? 'as reported' : 'confirmed', row.refused ? 'red' : row.pending ? 'amber' : row.desired == null ? '' : 'green');
            at.set(row.reported_at);
          },
        };
      });
    },
  };
}

/** A frame in words, with its bytes folded. */
function frameNode(frame) {
  const [first, ...rest] = frame.explained?.length ? frame.explained : [hex(frame.raw)];
  const up = frame.direction === 'up';
  return h('li', null, h('time', { datetime: frame.at, title: frame.at }, clock(frame.at, true)),
    h('span', { class: `badge ${frame.skipped ? 'amber' : up ? 'green' : 'blue'} bare` }, up ? 'device' : 'gateway'),
    h('div', { class: 'explained' }, h('div', { class: 'lines' }, frame.skipped && 'Skipped: ', first),
      h('details', null, h('summary', null, `${count(frame.bytes ?? frame.raw.length / 2, 'byte')}${frame.truncated ? ', cut' : ''}`),
        rest.length > 0 && h('div', { class: 'lines' }, rest.join('\n')), h('div', { class: 'hex' }, hex(frame.raw)))));
}

function framesPanel(id) {
  const list = h('ol', { class: 'frames' });
  const none = h('p', { class: 'note', hidden: true });
  const keys = new WeakMap();
  return {
    node: h('div', null, list, none),
    async poll(signal) {
      const told = await getIfThere('recorder', `${ADMIN}/recorder/${id}`, signal);
      none.hidden = Boolean(told?.frames.length);
      say(none, told ? 'No frame of it is in the recorder.' : 'Recorded frames are not available on this gateway.');
      const times = new Map();
      // Oldest first, as they are told: of one millisecond the later one is the later one.
      for (const frame of told?.frames ?? []) {
        const key = `${frame.at} ${frame.direction} ${frame.raw}`;
        times.set(key, (times.get(key) ?? 0) + 1);
        keys.set(frame, `${key} ${times.get(key)}`);
      }
      keyed(list, (told?.frames ?? []).toReversed(), (frame) => keys.get(frame), (frame) => ({ node: frameNode(frame), update() {} }));
    },
  };
}

// ---- An anomaly, with the frames around it

route(/^\/anomalies\/([^/]+)$/, 'overview', ([id]) => {
  const list = h('div');
  const frames = h('ol', { class: 'frames' });
  const gone = h('p', { class: 'note', hidden: true });
  const title = h('h1', null, 'Anomaly');
  const who = h('span', { class: 'sub' });
  const body = h('div', { class: 'two' },
    h('section', { class: 'card' }, h('header', null, h('h2', null, 'Frames around it')), frames),
    h('section', { class: 'card' }, h('header', null, h('h2', null, 'What')), h('div', { class: 'body' }, list)));
  let shown = '';
  return {
    title: 'Anomaly',
    node: h('div', null, h('p', { class: 'crumb' }, h('a', { href: '#/overview' }, 'Overview')), h('div', { class: 'head' }, title, who), gone, body),
    async poll(signal) {
      const one = await get(`${ADMIN}/anomalies/${encodeURIComponent(id)}`, signal);
      const text = JSON.stringify(one);
      if (text === shown) return;
      shown = text;
      say(title, spaced(one.kind));
      who.replaceChildren(one.device_id ? h('a', { class: 'link mono', href: `#/devices/${one.device_id}` }, one.device_id) : one.peer ?? '');
      list.replaceChildren(facts(one, ['frames', 'kind']));
      frames.replaceChildren(...one.frames.map(frameNode));
    },
    gone(error) {
      say(gone, error.message);
      gone.hidden = false;
      body.hidden = true;
    },
  };
});
