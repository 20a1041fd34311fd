'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const at = (id) => document.getElementById(id);
  const table = document.querySelector('.pictures');
  const bodies = [...table.querySelectorAll('tbody.image')];
  const given = [...bodies].sort((a, b) => a.dataset.row - b.dataset.row);
  const buttons = [...table.querySelectorAll('thead button')];
  const columns = [...table.querySelectorAll('thead th')].slice(1).map((th) => th.querySelector('button'));
  const figures = (value) => String(Number(value.toPrecision(3)));

  // The address holds what is shown, so that it can be sent and gone back to.
  const read = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    const one = (name, select) => {
      const values = [...select.options].map((option) => option.value);
      return values.includes(asked.get(name)) ? asked.get(name) : values[0];
    };
    return {
      score: one('score', at('score')), sort: one('sort', at('sort')),
      reverse: asked.get('reverse') === '1', unfold: asked.get('unfold') === '1',
    };
  };

  const write = (state) => {
    const asked = new URLSearchParams();
    if (state.score) asked.set('score', state.score);
    asked.set('sort', state.sort);
    if (state.reverse) asked.set('reverse', '1');
    if (state.unfold) asked.set('unfold', '1');
    location.hash = asked.toString();
  };

  // What a row is sorted by, small first; null where it has no such value.
  const rank = (state) => {
    if (state.sort === 'wrong') {
      const sure = (row) => (data.probabilities ? data.probabilities[row] ?? 0 : 0);
      return (row) => (data.wrong[row] ? 0 : 2) + sure(row);
    }
    if (state.sort === 'probability') return (row) => data.probabilities[row];
    if (!state.sort.startsWith('map:')) return (row) => row;
    const score = data.scores[state.score];
    const values = score.values[state.sort.slice(4)] ?? [];
    const sign = score.higher ? -1 : 1;
    return (row) => (values[row] == null ? null : sign * values[row]);
  };

  const order = (state) => {
    const by = rank(state);
    const sign = state.reverse ? -1 : 1;
    const keyed = given.map((body) => [by(Number(body.dataset.row)), body]);
    // Without a value last, whichever way; equal ones as given.
    keyed.sort(([a], [b]) => (a == null) - (b == null) || sign * (a - b));
    table.append(...keyed.map(([, body]) => body));
  };

  const label = (state) => {
    const score = data.scores[state.score];
    for (const body of given) {
      const row = Number(body.dataset.row);
      const cells = [...body.rows[0].cells].slice(1);
      cells.forEach((cell, index) => {
        const name = columns[index]?.dataset.column;
        const value = score?.values[name]?.[row];
        const text = cell.querySelector('.score');
        if (score?.values[name] === undefined) text.textContent = '';
        else if (value == null) text.textContent = '–';
        else {
          const bold = document.createElement('b');
          bold.textContent = figures(value);
          text.replaceChildren(bold, ` chance ${figures(score.chances[name][row])}`);
        }
      });
    }
  };

  const tell = (state) => {
    const sort = at('sort');
    const by = state.sort.startsWith('map:')
      ? `${state.score} of ${state.sort.slice(4)}, ${state.reverse ? 'worst' : 'best'} first`
      : sort.selectedOptions[0].textContent + (state.reverse ? ', reversed' : '');
    const score = data.scores[state.score];
    const way = score ? ` ${state.score}: ${score.higher ? 'higher' : 'lower'} is better.` : '';
    at('told').textContent = `${given.length} images in this order: ${by}.${way}`;
    for (const button of buttons) {
      const head = button.closest('th');
      if (state.sort !== `map:${button.dataset.column}`) head.removeAttribute('aria-sort');
      else head.setAttribute('aria-sort', score.higher === state.reverse ? 'ascending' : 'descending');
    }
  };

  let unfolded = false;
  const show = () => {
    const state = read();
    at('score').value = state.score ?? '';
    at('sort').value = state.sort;
    at('reverse').checked = state.reverse;
    at('unfold').checked = state.unfold;
    order(state);
    label(state);
    tell(state);
    if (state.unfold !== unfolded) {
      unfolded = state.unfold;
      for (const details of table.querySelectorAll('details')) details.open = unfolded;
    }
  };

  const change = (values) => write({ ...read(), ...values });
  at('score').addEventListener('change', (event) => change({ score: event.target.value }));
  at('sort').addEventListener('change', (event) => change({ sort: event.target.value, reverse: false }));
  at('reverse').addEventListener('change', (event) => change({ reverse: event.target.checked }));
  at('unfold').addEventListener('change', (event) => change({ unfold: event.target.checked }));
  at('strength').addEventListener('input', (event) => {
    document.documentElement.style.setProperty('--strength', event.target.value / 100);
  });
  for (const button of buttons) {
    button.addEventListener('click', () => {
      const state = read();
      const sort = `map:${button.dataset.column}`;
      change({ sort, reverse: state.sort === sort && !state.reverse });
    });
  }
  addEventListener('hashchange', show);
  show();
})();
