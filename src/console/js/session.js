// Who is signed in, and requests to the API. The key lives in this variable and dies with the tab.

const THIRD = '/api/v1/third';
const ADMIN = '/api/v1/admin';
/** A request without an answer for this long is given up. */
const REQUEST_MS = 10_000;

/** `{key, secret: CryptoKey | null, may: {read, control, admin}}` */
let session = null;
/** The gateway's clock less ours, ms; of its last answer. */
let clockAhead = 0;

const gatewayNow = () => Date.now() + clockAhead;

class Refused extends Error {
  constructor(status, body, retryAfter) {
    super(body?.message ?? `the gateway answered ${status}`);
    this.status = status;
    this.code = body?.error ?? '';
    this.data = body?.data ?? null;
    this.retryAfter = retryAfter;
  }

  /** Whether this gateway does not know the path at all: it is older than the console, or built without. */
  get isUnknownPath() {
    return this.status === 404 && this.code === 'NOT_FOUND' && this.message.startsWith('there is no /');
  }
}

const hexOf = (buffer) => Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, '0')).join('');
const random = () => hexOf(crypto.getRandomValues(new Uint8Array(16)));

/** `X-Signature` and what it covers: method, path, time, nonce and the hash of the body, a line each. */
async function signed(secret, method, path, body) {
  const timestamp = String(Math.floor(gatewayNow() / 1_000));
  const nonce = random();
  const bytes = new TextEncoder();
  const hash = hexOf(await crypto.subtle.digest('SHA-256', bytes.encode(body)));
  const text = `${method}\n${path}\n${timestamp}\n${nonce}\n${hash}`;
  const signature = hexOf(await crypto.subtle.sign('HMAC', secret, bytes.encode(text)));
  return { 'X-Timestamp': timestamp, 'X-Nonce': nonce, 'X-Signature': signature };
}

const secretKey = (text) => crypto.subtle.importKey('raw', new TextEncoder().encode(text), { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);

/** Asks the API; gives `data`. */
async function ask(method, path, { body, signal, as = session, once = null } = {}) {
  const text = body === undefined ? '' : JSON.stringify(body);
  const headers = { 'X-Api-Key': as.key };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  if (once) headers['Idempotency-Key'] = once;
  if (as.secret) Object.assign(headers, await signed(as.secret, method, path, text));
  const limit = AbortSignal.timeout(REQUEST_MS);
  const response = await fetch(path, {
    method, headers, body: body === undefined ? undefined : text,
    cache: 'no-store', credentials: 'omit', redirect: 'error', referrerPolicy: 'no-referrer',
    signal: signal ? AbortSignal.any([signal, limit]) : limit,
  });
  let answer = null;
  try {
    answer = await response.json();
  } catch (error) {
    if (error.name === 'AbortError' || error.name === 'TimeoutError') throw error;
  }
  if (answer?.timestamp) clockAhead = Date.parse(answer.timestamp) - Date.now();
  if (!response.ok || !answer) throw new Refused(response.status, answer, Number(response.headers.get('Retry-After')) || 0);
  return answer.data;
}

const get = (path, signal) => ask('GET', path, { signal });
const post = (path, body = {}, options = {}) => ask('POST', path, { body, ...options });

/** Paths that this gateway does not have. */
const missing = new Set();

/** As `get`, for what a gateway may lack: `undefined` then. `name` stands for all paths of the kind. */
async function getIfThere(name, path, signal) {
  if (missing.has(name)) return undefined;
  try {
    return await get(path, signal);
  } catch (error) {
    if (!error.isUnknownPath) throw error;
    missing.add(name);
    return undefined;
  }
}

function query(values) {
  const pairs = Object.entries(values).filter(([, value]) => value !== '' && value != null);
  return pairs.length ? `?${pairs.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join('&')}` : '';
}

/** Signs in, or throws a text that says why not. */
async function signIn(key, secretText) {
  const as = { key, secret: null, may: { read: false, control: false, admin: false } };
  if (secretText) {
    if (!crypto.subtle) throw new Error(UNSAFE);
    as.secret = await secretKey(secretText);
  }
  const tries = async (path, left = 3) => {
    try {
      await ask('GET', path, { as });
      return null;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      // A key of few requests per second is asked once a second.
      if (error.status !== 429 || left === 0) return error;
      await new Promise((later) => { setTimeout(later, 1_000 * (error.retryAfter || 1)); });
      return tries(path, left - 1);
    }
  };
  let no = await tries(`${THIRD}/devices?size=1`);
  // Where the clocks differ the first answer has told by how much.
  if (no?.status === 401 && as.secret) no = await tries(`${THIRD}/devices?size=1`);
  if (no?.status === 401 || no?.status === 429 || no?.status === 503) throw no;
  as.may.read = no?.status !== 403;
  // Neither changes anything: the first lacks its port and is refused behind the scope.
  as.may.control = ![401, 403].includes((await tries(`${THIRD}/devices/00000000/verification-code`))?.status);
  as.may.admin = ![401, 403].includes((await tries(`${ADMIN}/instances`))?.status);
  if (!as.may.read) throw new Error(`${no.message}. The console needs a key with the scope read.`);
  session = as;
  missing.clear();
}

const UNSAFE = 'This page was not loaded over HTTPS or from this machine, so the browser offers no cryptography and requests cannot be signed. '
  + 'Open the console over HTTPS or through an SSH tunnel to localhost, or use a key that does not require signatures.';
