// Keys of the API. A new key is shown once.

route(/^\/keys$/, 'keys', () => {
  const head = h('div', { class: 'head' }, h('h1', null, 'Keys'));
  if (!session.may.admin) return { title: 'Keys', node: h('div', null, head, needsAdmin('Keys')), poll: null };
  const rows = table([['Name'], ['Scopes'], ['Signs'], ['Rate', 'num'], ['Addresses', 'less wide'], ['From', 'less'], ['Updated', 'num less'], ['']], { label: 'API keys', empty: 'There are no keys.' });
  const add = h('button', { class: 'btn primary', type: 'button', onclick: newKey }, 'New key');
  head.append(h('div', { class: 'actions' }, add));
  return {
    title: 'Keys',
    node: h('div', null, head, h('section', { class: 'card' }, rows.node)),
    async poll(signal) {
      const told = await getIfThere('keys', `${ADMIN}/keys`, signal);
      add.hidden = told === undefined;
      if (told === undefined) return rows.say('Keys are not available on this gateway.');
      rows.set(asList(told).items, (one) => one.name, ({ name, source }) => {
        const [scopes, signs, rate, from, at] = [h('td'), h('td'), h('td', { class: 'num' }), h('td', { class: 'less wide muted' }), timeNode(moment)];
        const path = `${ADMIN}/keys/${encodeURIComponent(name)}`;
        return {
          node: h('tr', null, h('td', null, name), scopes, signs, rate, from, h('td', { class: 'less' }, source === 'config' ? 'configuration' : 'store'), h('td', { class: 'num less' }, at.node),
            h('td', { class: 'num' }, source === 'config' ? '' : [
              button('Rotate', () => confirmed(`Rotate ${name}?`, 'The old key stops working at once.', 'Rotate', async () => {
                const made = await post(`${path}/rotate`);
                again();
                setTimeout(() => shownOnce(`${name} has a new key`, secretsOf(made)));
              }), { kind: 'small plain' }),
              button('Delete', () => confirmed(`Delete ${name}?`, 'Whoever uses it is refused from now on.', 'Delete', async () => {
                await ask('DELETE', path);
                again();
              }), { kind: 'small plain danger' })])),
          update(one) {
            say(scopes, one.scopes.join(', '));
            say(signs, one.require_hmac ? 'yes' : 'no');
            say(rate, one.rate_per_s ? `${number(one.rate_per_s)} /s` : '–');
            say(from, one.ip_allow.join(', ') || 'any');
            at.set(one.updated_at);
          },
        };
      });
      return undefined;
    },
  };
});

const secretsOf = (made) => [['Key', made.key], ['Signing secret', made.hmac_secret]].filter(([, value]) => value);

function newKey() {
  const scope = (name, text, checked) => h('label', { class: 'check' }, h('input', { type: 'checkbox', name: 'scope', value: name, checked }), h('span', null, h('b', null, name), ` ${text}`));
  return dialog({
    title: 'New key',
    children: [
      h('label', { class: 'named' }, 'Name', h('input', { class: 'field', name: 'name', required: true, pattern: '[A-Za-z0-9._~\\-]{1,128}', autocomplete: 'off' })),
      scope('read', 'looks at devices, orders, events', true), scope('control', 'charges, commands, cards', false), scope('admin', 'operates the gateway', false),
      h('label', { class: 'check' }, h('input', { type: 'checkbox', name: 'hmac' }), 'Every request has to be signed'),
      h('label', { class: 'named' }, 'Addresses', h('input', { class: 'field mono', name: 'ips', placeholder: '192.0.2.0/24', autocomplete: 'off' }), h('small', null, 'Left empty: from anywhere.')),
    ],
    action: 'Create',
    async submit(form) {
      const body = { name: form.get('name').trim(), scopes: form.getAll('scope'), require_hmac: form.has('hmac') };
      const ips = form.get('ips').split(/[\s,]+/).filter(Boolean);
      if (ips.length) body.ip_allow = ips;
      const made = await post(`${ADMIN}/keys`, body);
      again();
      setTimeout(() => shownOnce(`${body.name} is made`, secretsOf(made)));
    },
  });
}
