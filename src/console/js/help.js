// Help: the keyboard, and what the colours mean.

route(/^\/help$/, 'help', () => {
  const rows = (pairs) => h('dl', { class: 'keys' }, pairs.map(([keys, text]) => [h('dt', null, keys.map((one, n) => [n > 0 && ' ', h('kbd', null, one)])), h('dd', null, text)]));
  return {
    title: 'Help',
    poll: null,
    node: h('div', null,
      h('div', { class: 'head' }, h('h1', null, 'Help')),
      h('div', { class: 'two even' },
        h('section', { class: 'card' }, h('header', null, h('h2', null, 'Keyboard')), h('div', { class: 'body' }, rows([
          [['/'], 'Search devices and orders; arrows choose, Enter opens'],
          [['g', 'h'], 'Overview'], [['g', 'd'], 'Devices'], [['g', 'o'], 'Orders'], [['g', 'w'], 'Webhooks'], ...(session.may.admin ? [[['g', 'k'], 'Keys']] : []),
          [['j'], 'Next row'], [['k'], 'Row before'], [['Enter'], 'Open the row'], [['['], 'Page before'], [[']'], 'Next page'],
          [['t'], 'Light or dark'], [['Esc'], 'Leave a field, close a dialog'], [['?'], 'This page'],
        ]))),
        h('section', { class: 'card' }, h('header', null, h('h2', null, 'What is shown')), h('div', { class: 'body stack' },
          h('p', null, 'Views look again every two seconds while their tab is visible, and pause while it is not. The dot beside the search field says how that goes.'),
          h('p', null, 'Buttons appear for what the key may do: read shows, control charges and sends commands, admin operates the gateway.'),
          h('p', null, 'The score of a device is 100 while its frames come in time, less 20 for a connection that broke lately and 30 for a command it did not acknowledge. From 50 on it is online.'),
          h('p', null, 'Figures of the overview are of the instance that answered; devices, orders and webhooks are of all instances that share the store.')))),
    ),
  };
});
