// The reference of every route, made from the OpenAPI document. GET routes can be tried out.
import { el } from './dom.js';

const dark = localStorage.getItem('theme') ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
document.documentElement.dataset.theme = dark;

const named = (schema) => (schema?.$ref ? schema.$ref.split('/').pop() : schema?.title ?? schema?.type ?? '');

// A schema with its references replaced by the schemas that they name.
function resolved(schema, all, depth = 0) {
  if (schema?.$ref) return depth > 4 ? named(schema) : resolved(all[named(schema)], all, depth + 1);
  if (Array.isArray(schema)) return schema.map((item) => resolved(item, all, depth));
  if (schema === null || typeof schema !== 'object') return schema;
  return Object.fromEntries(Object.entries(schema).filter(([key]) => key !== 'title').map(([key, value]) => [key, resolved(value, all, depth)]));
}

function operation(path, method, document_) {
  const route = document_.paths[path][method];
  const all = document_.components?.schemas ?? {};
  const parameters = (route.parameters ?? []).map((p) => ({ ...p, input: el('input', { placeholder: p.schema.default ?? p.name, ariaLabel: p.name }) }));
  const answer = route.responses['200'];
  const kind = Object.keys(answer?.content ?? {})[0] ?? '';
  const body = route.requestBody?.content['application/json']?.schema;
  const output = el('pre', { hidden: true });
  const tryOut = el('button', { type: 'button', textContent: 'Try it' });
  tryOut.onclick = async () => {
    let target = path;
    const query = new URLSearchParams();
    for (const p of parameters) {
      if (p.in === 'path') target = target.replace(`{${p.name}}`, encodeURIComponent(p.input.value));
      else if (p.in === 'query' && p.input.value) query.set(p.name, p.input.value);
    }
    const reply = await fetch(`${target}${query.size ? `?${query}` : ''}`);
    const text = reply.headers.get('content-type').includes('octet-stream') ? '(bytes)' : await reply.text();
    output.hidden = false;
    try { output.textContent = `${reply.status}\n${JSON.stringify(JSON.parse(text), null, 2)}`; } catch { output.textContent = `${reply.status}\n${text}`; }
  };
  const rows = parameters.filter((p) => p.in !== 'header').map((p) => el('tr', {}, el('td', { className: 'left' }, el('code', { textContent: p.name })),
    el('td', { className: 'left muted', textContent: `${p.in} · ${p.description ?? ''}` }), el('td', {}, method === 'get' ? p.input : null)));
  return el('details', { className: 'card operation' },
    el('summary', {}, el('span', { className: `method ${method}`, textContent: method.toUpperCase() }), el('code', { textContent: path }), el('span', { className: 'muted', textContent: route.description?.split('\n')[0] ?? route.summary })),
    el('p', { className: 'muted', textContent: route.security ? 'Needs the header X-API-Key.' : '' }),
    rows.length ? el('table', {}, el('tbody', {}, ...rows)) : null,
    body ? el('h3', { textContent: 'Body' }) : null, body ? el('pre', { textContent: JSON.stringify(resolved(body, all), null, 2) }) : null,
    el('h3', { textContent: `Answer ${kind}` }), el('pre', { textContent: JSON.stringify(resolved(answer?.content?.[kind]?.schema ?? {}, all), null, 2) }),
    method === 'get' && path !== '/events' ? tryOut : null, output);
}

const document_ = await (await fetch('/openapi.json')).json();
const byTag = new Map();
for (const [path, operations] of Object.entries(document_.paths)) {
  for (const method of Object.keys(operations)) {
    const tag = operations[method].tags?.[0] ?? 'other';
    byTag.set(tag, [...(byTag.get(tag) ?? []), operation(path, method, document_)]);
  }
}
document.getElementById('reference').replaceChildren(
  el('p', { className: 'muted', textContent: `${document_.info.description} Errors are problem details (RFC 9457).` }),
  ...[...byTag].map(([tag, items]) => el('section', {}, el('h2', { textContent: tag }), el('p'), ...items)));
