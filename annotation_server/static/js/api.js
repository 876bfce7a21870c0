// Our own API from a signed-in page: JSON in and out, and three ways to fail that a page must tell apart.
// Not here: what is asked (workbench.js), what waits for the network (outbox.js).

export class Offline extends Error {}
// The network or the server is away for now: worth trying again.

export class SignedOut extends Error {}
// The session ended: sign in, then try again.

export class Refused extends Error {
  // The server answered no: trying the same again will not help.
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

function cookie(name) {
  const found = document.cookie.split("; ").find((part) => part.startsWith(`${name}=`));
  return found ? decodeURIComponent(found.slice(name.length + 1)) : "";
}

const PATIENCE_MS = 20_000;

export async function call(method, url, body, options = {}) {
  let response;
  try {
    response = await fetch(url, {
      method,
      headers: { "Content-Type": "application/json", "X-CSRFToken": cookie("csrftoken") },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      signal: options.keepalive ? undefined : AbortSignal.timeout(PATIENCE_MS),
      ...options,
    });
  } catch (error) {
    throw new Offline(String(error));
  }
  if (response.status === 401) throw new SignedOut();
  if (response.status >= 500 || response.status === 429) throw new Offline(`the server answered ${response.status}`);
  if (response.status === 204) return null;
  let said;
  try {
    said = await response.json();
  } catch {
    // A proxy's or a captive portal's page: not our answer, so nothing is known to have arrived.
    throw new Offline(`an answer that is not ours (${response.status})`);
  }
  if (!response.ok) {
    const error = said.error ?? {};
    // Signing in gives a new token; a page that still sends the old one is as good as signed out.
    if (response.status === 403 && /csrf/i.test(error.message ?? "")) throw new SignedOut();
    throw new Refused(response.status, error.code ?? "", error.message ?? `refused (${response.status})`);
  }
  return said;
}

// Sign in through the page's own form address. Resolves to whether it worked.
export async function signIn(url, username, password) {
  const form = new URLSearchParams({ username, password, csrfmiddlewaretoken: cookie("csrftoken") });
  let response;
  try {
    response = await fetch(url, { method: "POST", body: form, redirect: "manual", credentials: "same-origin" });
  } catch (error) {
    throw new Offline(String(error));
  }
  return response.type === "opaqueredirect"; // success redirects; a refusal shows the form again
}
