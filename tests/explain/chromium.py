"""A headless Chromium that is asked over a pipe, by the standard library alone."""

import contextlib
import json
import os
import shutil
import subprocess

BINARY = shutil.which('chromium') or shutil.which('chromium-browser')
FLAGS = (
  '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run '
  '--disable-background-networking --disable-component-update --disable-sync '
  '--disable-dev-shm-usage --remote-debugging-pipe'
).split()


class Tab:
  """One page: what it was asked for, what it complained of, and what its scripts answer."""

  def __init__(self, to_it: int, from_it: int):
    self.to_it, self.from_it, self.count, self.rest = to_it, from_it, 0, b''
    self.session = None
    self.requests: list[str] = []
    self.complaints: list[str] = []
    self.loaded = 0
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    for domain in ('Page', 'Network', 'Log', 'Runtime'):
      self.call(f'{domain}.enable')

  def call(self, method: str, **params) -> dict:
    """Asks, and waits for the answer; events on the way are noted."""
    self.count += 1
    message = {'id': self.count, 'method': method, 'params': params}
    if self.session is not None:
      message['sessionId'] = self.session
    os.write(self.to_it, json.dumps(message).encode() + b'\0')
    while (answer := self._next()).get('id') != message['id']:
      self._note(answer)
    assert 'error' not in answer, answer
    return answer['result']

  def open(self, url: str) -> None:
    before = self.loaded
    self.call('Page.navigate', url=url)
    while self.loaded == before:
      self._note(self._next())

  def ask(self, script: str):
    """The value of an expression on the page."""
    answer = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
    assert 'exceptionDetails' not in answer, answer
    return answer['result'].get('value')

  def press(self, key: str, code: int) -> None:
    for kind in ('rawKeyDown', 'char', 'keyUp') if key == 'Enter' else ('rawKeyDown', 'keyUp'):
      text = {'text': '\r'} if key == 'Enter' and kind != 'keyUp' else {}
      self.call('Input.dispatchKeyEvent', type=kind, key=key, windowsVirtualKeyCode=code, **text)

  def _next(self) -> dict:
    while b'\0' not in self.rest:
      part = os.read(self.from_it, 1 << 16)
      if not part:
        raise EOFError('the browser is gone')
      self.rest += part
    message, _, self.rest = self.rest.partition(b'\0')
    return json.loads(message)

  def _note(self, event: dict) -> None:
    name, params = event.get('method'), event.get('params', {})
    if name == 'Network.requestWillBeSent':
      self.requests.append(params['request']['url'])
    elif name == 'Log.entryAdded':
      self.complaints.append(params['entry']['text'])
    elif name in ('Runtime.exceptionThrown', 'Runtime.consoleAPICalled'):
      self.complaints.append(json.dumps(params))
    elif name == 'Page.loadEventFired':
      self.loaded += 1


@contextlib.contextmanager
def tab(profile):
  """A tab of a browser of its own, whose profile lies in ``profile``."""
  to_it, from_it = os.pipe(), os.pipe()
  # The browser reads what it is asked from 3 and answers on 4.
  start = f'exec "$@" 3<&{to_it[0]} 4>&{from_it[1]}'
  process = subprocess.Popen(
    ['bash', '-c', start, 'bash', BINARY, *FLAGS, f'--user-data-dir={profile}', 'about:blank'],
    pass_fds=(to_it[0], from_it[1]),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  os.close(to_it[0])
  os.close(from_it[1])
  try:
    yield Tab(to_it[1], from_it[0])
  finally:
    process.terminate()
    process.wait(20)
    os.close(to_it[1])
    os.close(from_it[0])
