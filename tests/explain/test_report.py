"""The page: what is on it, how large it is, and that it does in a browser what it says."""

import base64
import html.parser
import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jattn.explain import (
  Score,
  attention_by_head,
  explain,
  overlay,
  summarise,
  write_report,
)
from jattn.explain.report import colours, encoding
from jattn.explain.report.outlines import outline, traced
from tests.explain import chromium
from tests.explain.networks import convolutional, predict, transformer

NASTY = '</script><img src=x onerror=alert(1)> & "quoted" \'s'
SIDE = 8
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)
MASKS = np.zeros((5, SIDE, SIDE), bool)
MASKS[:, 2:5, 3:6] = True
NOT_FINITE = np.where(np.arange(5)[:, None, None] == 2, np.nan, RNG.normal(size=(5, SIDE, SIDE)))
MAPS = {'even': np.ones((5, SIDE, SIDE)), 'signed_map': NOT_FINITE, NASTY: MASKS * 1.0}
# Image 3 cannot be scored by auroc.
AUROC = [0.1, 0.5, 0.3, 0.9, 0.7]
VALID = np.array([True, True, True, False, True])


def score(values, higher=True, valid=VALID, chance=0.5):
  values = np.asarray(values, np.float32)
  return Score(values, np.full(5, chance, np.float32), valid, higher)


SCORES = {
  'even': {'auroc': score([0.5] * 5)},
  'signed_map': {'auroc': score(AUROC), 'deletion': score([5, 1, 2, 3, 4], higher=False)},
}
LABELS, PREDICTED = [0, 1, 1, 0, 1], [0, 1, 0, 1, 1]
PROBABILITIES = [0.9, 0.6, 0.2, 0.1, 0.8]  # images 3 and 2 are wrong, 3 the more


def write(path, images=IMAGES, maps=MAPS, **changes):
  settings = {
    'scores': SCORES,
    'labels': LABELS,
    'predicted': PREDICTED,
    'probabilities': PROBABILITIES,
    'class_names': ['cat', NASTY],
    'masks': MASKS,
    'boxes': np.tile([[[2, 3, 5, 6]]], (5, 1, 1)),
    'heads': {'attention_0/weights': RNG.uniform(size=(5, 2, 4, 4))},
    'of_the_model': {'attention_0/weights': {'faithfulness': score([0.1] * 5, chance=0)}},
    'descriptions': {'even': NASTY},
    'captions': [f'caption {index} {NASTY}' for index in range(5)],
    'title': f'Title {NASTY}',
    'facts': {'data': NASTY},
    'notes': [NASTY],
  }
  write_report(path, images, maps, **(settings | changes))
  return path.read_text(encoding='utf-8')


class Elements(html.parser.HTMLParser):
  """Every element of a page with its attributes, and its text."""

  def __init__(self, text):
    super().__init__()
    self.found, self.text = [], ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data

  def all(self, tag):
    return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  path = tmp_path_factory.mktemp('report') / 'report.html'
  write(path)
  return path


@pytest.fixture(scope='module')
def elements(page):
  return Elements(page.read_text(encoding='utf-8'))


def test_names_are_text_and_never_markup(page, elements):
  assert not [a for a in elements.all('img') if 'onerror' in a]
  assert not [a for _, a in elements.found if set(a) & {'onload', 'onclick', 'onerror'}]
  assert len(elements.all('script')) == 2
  json.loads(data_of(page))
  assert f'Title {NASTY}' in elements.text
  assert f'caption 4 {NASTY}' in elements.text


def data_of(page):
  text = page.read_text(encoding='utf-8')
  return re.search(r'id="data">(.*?)</script>', text, re.S).group(1)


def test_nothing_is_loaded_from_anywhere(page, elements):
  for _, attributes in elements.found:
    for name in ('src', 'href'):
      assert attributes.get(name, '#').startswith(('data:', '#')), attributes
  text = page.read_text(encoding='utf-8')
  assert not re.search(r'url\((?!data:)', text)
  assert not re.search(r'https?://', text)
  (policy,) = [a['content'] for a in elements.all('meta') if 'http-equiv' in a]
  assert "default-src 'none'" in policy
  assert "script-src 'sha256-" in policy


def test_every_picture_says_in_words_what_it_shows(elements):
  images = elements.all('img')
  assert len(images) == 1 + 5 * (1 + 3 + 1)  # the colour bar; image, three maps, heads
  assert all(len(a['alt']) > 10 for a in images)
  alts = [a['alt'] for a in images]
  (first,) = [a for a in alts if a.startswith('signed_map over image 1:')]
  assert 'true cat, predicted cat, right' in first
  assert 'auroc: 0.1, chance 0.5, higher is better' in first
  assert 'deletion: 5, chance 0.5, lower is better' in first
  assert '% of its magnitude is negative' in first
  (fourth,) = [a for a in alts if a.startswith('signed_map over image 4:')]
  assert 'wrong' in fourth
  assert 'auroc: not defined for this image' in fourth


def test_a_map_that_says_nothing_is_called_so(elements):
  assert elements.text.count('constant: it says nothing') == 5
  assert elements.text.count('not finite: nothing to see') == 1


def test_the_summary_has_mean_interval_chance_direction_and_count(elements):
  key = jax.random.key(0)
  got = summarise(key, score(AUROC))
  values = np.asarray(AUROC)[VALID]
  assert (got.count, got.higher_is_better) == (4, True)
  np.testing.assert_allclose([got.mean, got.chance], [values.mean(), 0.5], rtol=1e-6)
  assert values.min() <= got.low < got.mean < got.high <= values.max()
  assert f'0.4 [{got.low:.3g}, {got.high:.3g}]' in elements.text
  for words in ('chance 0.5', '4 images', 'higher is better', 'lower is better'):
    assert words in elements.text
  none = summarise(key, score(AUROC, valid=np.zeros(5, bool)))
  assert none.count == 0
  assert np.isnan(none.mean)


def test_64_images_by_6_methods_are_below_5_mb_even_where_all_is_noise(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (64, 96, 96, 3)).astype(np.uint8)
  noise = rng.normal(size=(64, 96, 96))
  heads = {f'block_{i}': rng.uniform(size=(64, 6, 14, 14)) for i in range(12)}
  path = tmp_path / 'report.html'
  write_report(path, images, {f'method {i}': noise for i in range(6)}, heads=heads)
  assert 1e6 < path.stat().st_size < 5e6


def test_colours_are_multiples_of_the_even_share_on_one_scale():
  maps = np.array([[[1.0, 3.0], [0.0, 4.0]], [[7.0, 7.0], [7.0, 7.0]], [[-1.0, 1.0], [0.0, 0.0]]])
  shares = colours.multiples(maps)
  np.testing.assert_allclose(shares[0], [[0.5, 1.5], [0, 2]])
  np.testing.assert_allclose(shares[1], 1)
  np.testing.assert_allclose(shares[2], [[-2, 2], [0, 0]])
  # The unit of a method, however large or small, drops out.
  for scale in (1e-30, 1e30):
    np.testing.assert_allclose(colours.multiples(scale * maps), shares, rtol=1e-6)
  assert not colours.multiples(np.full((1, 2, 2), np.inf)).any()
  table = colours.table()
  np.testing.assert_array_equal(colours.colours_of([-99, 0, 99]), table[[0, 63, 126]])
  drawn = overlay(np.zeros((1, 2, 2, 3), np.uint8), maps[:1], strength=1.0)
  np.testing.assert_array_equal(drawn[0], colours.colours_of(shares[0]))


# Linear RGB as seen with no red or no green cones: Machado, Oliveira and Fernandes 2009.
SEEN = {
  'usual': np.eye(3),
  'protanopia': [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  'deuteranopia': [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.01182, 0.04294, 0.968881],
  ],
}


def lab(rgb, seen):
  """CIE L*a*b* 1976 of sRGB bytes."""
  c = rgb / 255
  linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
  linear = np.clip(linear @ np.asarray(seen).T, 0, 1)
  to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
  t = linear @ np.transpose(to_xyz) / [0.9505, 1, 1.089]
  f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * 841 / 108 + 4 / 29)
  return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize('seen', SEEN)
def test_more_is_lighter_and_the_sign_is_told_with_any_colour_vision(seen):
  table = lab(colours.table().astype(float), SEEN[seen])
  light, zero = table[:, 0], colours.LEVELS - 1
  assert (np.diff(light[zero:]) > 0).all()
  assert (np.diff(light[: zero + 1]) < 0).all()
  assert min(light[0], light[-1]) > 85
  # From the even share on: far beyond 2.3, a difference that is just seen.
  one = colours.LEVELS // 4
  apart = np.linalg.norm(table[zero + one :, None] - table[None, : zero - one], axis=2)
  assert apart.min() > 50


def test_the_outline_is_the_border_of_the_mask():
  mask = np.zeros((4, 5), bool)
  mask[1:3, 1:4] = True
  mask[1, 1] = False
  mask[0, 0] = True
  want = {((x, y), (x + 1, y)) for x, y in [(0, 0), (0, 1), (2, 1), (3, 1), (1, 2), (1, 3)]}
  want |= {((2, 3), (3, 3)), ((3, 3), (4, 3))}
  want |= {((x, y), (x, y + 1)) for x, y in [(0, 0), (1, 0), (2, 1), (4, 1), (1, 2), (4, 2)]}
  got = set()
  for x, y, way, length in re.findall(r'M(\d+) (\d+)([hv])(\d+)', outline(mask)):
    x, y = int(x), int(y)
    for step in range(int(length)):
      a = (x + step, y) if way == 'h' else (x, y + step)
      got.add((a, (a[0] + 1, a[1]) if way == 'h' else (a[0], a[1] + 1)))
  assert got == want
  drawn = traced(np.full((12, 15, 3), 9, np.uint8), mask)
  assert (drawn[0, 0] == 255).all()
  assert (drawn[3, 3] == 0).all()  # outside, at a corner of the mask
  assert (drawn[8, 14] == 9).all()


def decoded(uri):
  with Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))) as image:
    return np.asarray(image.convert('RGBA'))


def test_pictures_hold_their_pixels():
  shares = np.linspace(-5, 5, 12, dtype=np.float32).reshape(3, 4)
  np.testing.assert_array_equal(
    decoded(encoding.heat(shares, 96))[..., :3], colours.colours_of(shares)
  )
  np.testing.assert_array_equal(decoded(encoding.picture(IMAGES[0], 96))[..., :3], IMAGES[0])
  assert decoded(encoding.picture(np.zeros((200, 100, 3), np.uint8), 50)).shape == (50, 25, 4)
  halved = decoded(encoding.heat(np.repeat([[0.0, 2.0]], 8, 0).astype(np.float32), 4))
  np.testing.assert_array_equal(halved[..., :3], np.tile(colours.colours_of(1.0), (4, 1, 1)))


def test_heads_lie_side_by_side_each_on_its_own_even_share():
  heads = np.array([[[1.0, 3.0]], [[5.0, 5.0]]])
  uri, size = encoding.sheet(heads, 9)
  drawn = decoded(uri)
  assert size == (5, 1)
  np.testing.assert_array_equal(drawn[0, [0, 1, 3, 4], :3], colours.colours_of([0.5, 1.5, 1, 1]))
  assert drawn[0, 2, 3] == 0
  uri, size = encoding.sheet(np.ones((18, 2, 2)), 9)
  assert size == (16 * 3 - 1, 5)


def test_the_mean_over_heads_is_what_attention_shows():
  model, variables, images = convolutional(pool='weighted_average')
  heads = attention_by_head(model, variables, images)
  for path in ('attention_0/weights', 'pool/weights'):
    received = heads[path].mean(axis=1)
    shown = explain('attention', model, variables, images, path=path)
    np.testing.assert_allclose(
      jax.image.resize(received, shown.shape, 'bilinear'), shown, rtol=1e-5, atol=1e-7
    )


def test_heads_of_a_class_token_are_its_rows():
  model, variables, images = transformer()
  maps = predict(model, variables, images).maps
  for path, got in attention_by_head(model, variables, images).items():
    rows = maps[path].dense() if maps[path].keys is None else maps[path].weights
    np.testing.assert_allclose(got.reshape(2, 2, -1), rows[:, :, 0, 1:], rtol=1e-5)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'images': IMAGES[0]}, r'must be \[N, H, W, 3\]'),
    ({'images': IMAGES.astype(int)}, 'must be uint8'),
    ({'maps': {'x': np.ones((5, 4, 4))}, 'scores': {}, 'descriptions': {}}, r"maps\['x'\] \(5, 4"),
    ({'scores': {'nobody': {}}}, "scores names 'nobody', which is no column"),
    ({'descriptions': {'nobody': ''}}, "descriptions names 'nobody'"),
    ({'scores': {'even': {'auroc': Score(*[jnp.ones(4)] * 3)}}}, r"\['auroc'\] \(4,\) must be"),
    ({'labels': [0]}, 'labels has 1 entries for 5 images'),
    ({'predicted': [0, 1, 2, 3, 4]}, 'predicted has class 2, and there are 2 class_names'),
    ({'masks': MASKS[:, :4]}, 'masks .* must have the shape'),
    ({'boxes': np.ones((5, 4))}, 'boxes .* top, left, bottom, right'),
    ({'heads': {'a': np.ones((5, 4, 4))}}, r"heads\['a'\] .* must be \[5, M, h, w\]"),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    write(tmp_path / 'x.html', **changes)
  assert not list(tmp_path.iterdir())


def test_images_and_maps_alone_are_enough(tmp_path):
  path = tmp_path / 'bare.html'
  write_report(path, IMAGES / 255, {'a': MAPS['even']})
  found = Elements(path.read_text(encoding='utf-8'))
  rows = [a['data-row'] for a in found.all('tbody') if 'data-row' in a]
  assert rows == list('01234')
  assert 'None' not in found.text


@pytest.fixture(scope='module')
def tab(page, tmp_path_factory):
  if chromium.BINARY is None:
    pytest.skip("needs Debian's chromium, which is not here")
  with chromium.tab(tmp_path_factory.mktemp('profile')) as opened:
    opened.open(page.as_uri())
    yield opened


ORDER = "[...document.querySelectorAll('tbody.image')].map((body) => Number(body.dataset.row))"


def go(tab, hash_):
  tab.ask(
    "new Promise((done) => { addEventListener('hashchange', () => done(), { once: true });"
    f' location.hash = {json.dumps(hash_)}; }})'
  )
  return tab.ask(ORDER)


def test_in_a_browser_rows_are_sorted_by_the_address(tab):
  assert tab.ask(ORDER) == [3, 2, 1, 4, 0]  # wrong first
  assert go(tab, 'sort=row') == [0, 1, 2, 3, 4]
  assert go(tab, 'sort=row&reverse=1') == [4, 3, 2, 1, 0]
  assert go(tab, 'sort=probability') == [3, 2, 1, 4, 0]
  assert go(tab, 'sort=wrong&reverse=1') == [0, 4, 1, 2, 3]
  # Image 3 has no such score and is last both ways.
  assert go(tab, 'score=auroc&sort=map:signed_map') == [4, 1, 2, 0, 3]
  assert go(tab, 'score=auroc&sort=map:signed_map&reverse=1') == [0, 2, 1, 4, 3]
  assert go(tab, 'score=deletion&sort=map:signed_map') == [1, 2, 4, 0, 3]
  assert go(tab, 'score=nothing&sort=nonsense') == [3, 2, 1, 4, 0]


def test_in_a_browser_the_keyboard_sorts_and_the_page_says_so(tab):
  go(tab, 'score=auroc&sort=row')
  changed = "new Promise((d) => addEventListener('hashchange', () => d(), { once: true }))"
  button = "document.querySelector('button[data-column=signed_map]')"
  tab.ask(f'{button}.focus()')
  for want, way in (([4, 1, 2, 0, 3], 'descending'), ([0, 2, 1, 4, 3], 'ascending')):
    tab.ask(f'window.changed = {changed}; 0')
    tab.press('Enter', 13)
    tab.ask('window.changed')
    assert tab.ask(ORDER) == want
    assert tab.ask(f"{button}.closest('th').getAttribute('aria-sort')") == way
  assert 'auroc of signed_map, worst first' in tab.ask(
    "document.getElementById('told').textContent"
  )
  assert tab.ask("document.getElementById('sort').value") == 'map:signed_map'


def test_in_a_browser_scores_change_with_the_choice_and_layers_unfold(tab):
  go(tab, 'score=deletion&sort=row')
  cell = 'document.querySelector(\'tbody[data-row="4"]\').rows[0].cells[2].textContent'
  assert '4 chance 0.5' in tab.ask(cell)
  assert tab.ask("document.querySelectorAll('details[open]').length") == 0
  go(tab, 'score=auroc&sort=row&unfold=1')
  assert '0.7 chance 0.5' in tab.ask(cell)
  assert tab.ask("document.querySelectorAll('details[open]').length") == 5


def test_in_a_browser_all_pictures_are_drawn_in_both_schemes(tab):
  drawn = '[...document.images].every((image) => image.complete && image.naturalWidth > 0)'
  assert tab.ask(drawn)
  assert tab.ask("getComputedStyle(document.querySelector('.marks use')).display") != 'none'
  grounds = set()
  for scheme in ('light', 'dark'):
    tab.call(
      'Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': scheme}]
    )
    grounds.add(tab.ask('getComputedStyle(document.body).backgroundColor'))
  assert len(grounds) == 2


def test_in_a_browser_nothing_is_asked_of_a_network_and_nothing_is_wrong(tab):
  assert tab.complaints == []
  assert [url for url in tab.requests if not url.startswith(('file:', 'data:'))] == []
  assert tab.requests
