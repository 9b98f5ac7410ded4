// Overview: ten minutes of this instance, the instances there are, and what was odd lately.

const POINTS_MAX = 300;

route(/^\/(?:overview)?$/, 'overview', () => {
  pointer.charts.clear();
  const charts = [
    chart({ title: 'Connections', lines: [{ name: 'open', of: (p) => p.connections }, { name: 'online', of: (p) => p.devices_online }], full: true }),
    chart({ title: 'Frames', unit: '/s', lines: [{ name: 'in', of: (p) => p.frames_in_per_s }, { name: 'out', of: (p) => p.frames_out_per_s }], full: true }),
    chart({ title: 'Command to acknowledgement', unit: 'ms', lines: [{ name: 'p50', of: (p) => p.ack_ms_p50 }, { name: 'p99', of: (p) => p.ack_ms_p99 }], full: true }),
    chart({ title: 'Settlements', unit: '/s', lines: [{ of: (p) => p.settlements_per_s }] }),
    chart({ title: 'Commands waiting', lines: [{ of: (p) => p.commands_waiting }] }),
    chart({ title: 'Webhook backlog', unit: 'events', lines: [{ of: (p) => p.webhook_backlog }] }),
    chart({ title: 'API requests', unit: '/s', lines: [{ of: (p) => p.api_requests_per_s }] }),
  ];
  const state = badge();
  const name = h('span', { class: 'mono' });
  const version = h('dd');
  const up = h('dd');
  const stage = h('dd');
  const sampled = h('dd');
  const self = h('section', { class: 'card self', 'aria-label': 'This instance' },
    h('span', { class: 'muted' }, 'This instance'),
    h('dl', { class: 'facts' }, h('dt', null, 'Name'), h('dd', null, name), h('dt', null, 'Version'), version, h('dt', null, 'Up'), up, h('dt', null, 'Stage'), stage, h('dt', null, 'Its clock'), sampled));
  let draining = false;
  const drain = h('button', { class: 'btn', type: 'button', role: 'switch', 'aria-checked': 'false', hidden: true, onclick: () => toDrain() }, 'Drain');
  const instances = table([['Instance'], ['State'], ['Version', 'less'], ['Up', 'num'], ['Heard', 'num'], ['Connections', 'num']], { label: 'Instances' });
  const others = h('section', { class: 'card', hidden: true }, h('header', null, h('h2', null, 'Instances')), instances.node);
  const odd = table([['When'], ['Device or peer'], ['Kind'], ['Times', 'num'], ['Detail', 'wide less']], { label: 'Anomalies', empty: 'Nothing odd was seen.' });
  const wrong = h('p', { class: 'note', hidden: true });
  const node = h('div', null,
    h('div', { class: 'head' }, h('h1', null, 'Overview'), state.node, h('div', { class: 'actions' }, drain)),
    wrong,
    h('div', { class: 'charts' }, charts.map((one) => one.node), self),
    session.may.admin && h('div', { class: 'stack' },
      others,
      h('section', { class: 'card' }, h('header', null, h('h2', null, 'Anomalies')), odd.node)));

  let series = [];
  let turns = 0;

  async function toDrain() {
    const to = !draining;
    await confirmed(
      to ? 'Drain this instance?' : 'Take devices again?',
      to ? 'It takes no new devices and hands those it has to the other instances, a few at a time. Where there is no other, devices stay away until it takes them again.'
        : 'The instance becomes ready again, and devices may connect to it.',
      to ? 'Drain' : 'Take devices',
      async () => {
        await post(`${ADMIN}/drain`, { draining: to });
        toast(to ? 'The instance drains.' : 'The instance takes devices again.');
        again();
      },
      to,
    );
  }

  async function figures(signal) {
    const since = series.at(-1)?.at;
    const seen = await getIfThere('overview', `${ADMIN}/overview${query({ since })}`, signal);
    wrong.hidden = seen !== undefined;
    if (!seen) return say(wrong, 'Figures are not available on this gateway.');
    // Another instance behind the load balancer, or this one started anew, has a history of its own.
    if (self.instance !== `${seen.instance} ${seen.started_at.slice(0, 18)}`) {
      self.instance = `${seen.instance} ${seen.started_at.slice(0, 18)}`;
      series = [];
      if (since) return figures(signal);
    }
    series = [...series, ...seen.series.map((p) => ({ ...p, t: Date.parse(p.at) }))].slice(-POINTS_MAX);
    const now = Date.parse(seen.now);
    for (const one of charts) one.set(series, now);
    ({ draining } = seen);
    state.set(draining ? 'draining' : seen.ready ? 'ready' : 'not ready', draining ? 'amber' : seen.ready ? 'green' : 'red');
    say(name, seen.instance);
    say(version, seen.version);
    say(up, lasting((now - Date.parse(seen.started_at)) / 1_000));
    say(stage, seen.stage ?? (seen.ready ? 'ready' : 'not ready'));
    say(sampled, clock(now));
    attr(drain, 'aria-checked', String(draining));
    say(drain, draining ? 'Take devices again' : 'Drain');
    return undefined;
  }

  async function rest(signal) {
    const [list, anomalies] = await Promise.all([
      getIfThere('instances', `${ADMIN}/instances`, signal),
      getIfThere('anomalies', `${ADMIN}/anomalies?size=20`, signal),
    ]);
    // Who may ask for instances may ask for the drain, too, and a gateway that has none says so when it is asked.
    drain.hidden = missing.has('drain');
    // One that is alone is not listed, and needs no list.
    others.hidden = list?.length === 0;
    if (list) {
      instances.set(list, (one) => one.server_id, () => {
        const [id, what, versionCell, age, heard, open] = [h('td', { class: 'mono' }), badge(), h('td', { class: 'less' }), h('td', { class: 'num' }), h('td', { class: 'num' }), h('td', { class: 'num' })];
        return {
          node: h('tr', null, id, h('td', null, what.node), versionCell, age, heard, open),
          update(one) {
            say(id, one.server_id);
            const dead = one.beat_age_ms > 15_000;
            what.set(dead ? 'dead' : one.draining ? 'draining' : 'serving', dead ? 'red' : one.draining ? 'amber' : 'green');
            say(versionCell, one.version);
            say(age, lasting((gatewayNow() - Date.parse(one.started_at)) / 1_000));
            say(heard, `${tenths.format(one.beat_age_ms / 1_000)} s ago`);
            say(open, whole.format(one.connections));
          },
        };
      });
    } else {
      instances.say('Instances are not available on this gateway.');
    }
    if (anomalies === undefined) return odd.say('Anomalies are not available on this gateway.');
    odd.set(anomalies.items, (one) => one.id, (one) => {
      const [at, times] = [timeNode(), h('td', { class: 'num' })];
      const href = `#/anomalies/${one.id}`;
      return {
        node: rowNode(href, [h('td', null, h('a', { href }, at.node)), h('td', { class: 'mono' }, one.device_id ?? one.peer ?? '–'),
          h('td', null, spaced(one.kind)), times, h('td', { class: 'wide less muted', title: one.detail }, one.detail)]),
        update(row) {
          at.set(row.last_at ?? row.at);
          say(times, number(row.count ?? 1));
        },
      };
    });
    return undefined;
  }

  return {
    title: 'Overview',
    node,
    async poll(signal) {
      await figures(signal);
      if (session.may.admin && turns++ % 3 === 0) await rest(signal);
    },
  };
});
