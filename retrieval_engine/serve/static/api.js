// Asks the server, and for a token where it wants one.

export class Problem extends Error {}

export const byId = (id) => document.getElementById(id);

export function make(tag, { text, ...rest } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), rest);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

export function say(place, text, isBad = false) {
  place.textContent = text;
  place.classList.toggle("bad", isBad);
}

async function logIn() {
  const dialog = byId("login");
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  const headers = { Authorization: `Bearer ${byId("token").value}` };
  const answer = await fetch("/session", { method: "POST", headers });
  byId("token").value = "";
  if (!answer.ok) throw new Problem("This is not the token.");
}

export async function ask(path, body) {
  for (let tries = 0; ; tries += 1) {
    let answer;
    const how = { cache: "no-store" };
    if (body instanceof FormData) Object.assign(how, { method: "POST", body });
    else if (body) {
      const headers = { "Content-Type": "application/json" };
      Object.assign(how, { method: "POST", headers, body: JSON.stringify(body) });
    }
    try {
      answer = await fetch(path, how);
    } catch {
      throw new Problem("The server does not answer.");
    }
    if (answer.ok) return answer.json();
    if (answer.status === 401 && tries < 3) {
      await logIn();
      continue;
    }
    const busy = answer.status === 429 || answer.status === 503;
    if (busy && tries < 5) {
      const wait = Number(answer.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * Math.min(wait, 10)));
      continue;
    }
    const said = await answer.json().catch(() => ({}));
    throw new Problem(said.error?.message ?? `The server answers ${answer.status}.`);
  }
}

export function save(name, kind, text) {
  const address = URL.createObjectURL(new Blob([text], { type: kind }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
