// Elements are made from text, never from markup, and are updated in place.

export const $ = (id) => document.getElementById(id);

// Makes an element; the properties and children are never parsed as markup.
export function el(tag, properties = {}, ...children) {
  const { key, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  if (key !== undefined) node.dataset.key = key;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Makes the children of a node equal to the given ones. Existing nodes are changed only where they differ, so that
// selected text, focus and tooltips survive an update. Nodes with a key are matched by key, others by position.
export function fill(parent, ...wanted) {
  const keyed = new Map([...parent.children].filter((n) => n.dataset.key !== undefined).map((n) => [n.dataset.key, n]));
  let at = parent.firstChild;
  for (const item of wanted) {
    const node = typeof item === 'string' ? document.createTextNode(item) : item;
    const key = node.dataset?.key;
    const old = key === undefined ? (at && at.dataset?.key === undefined ? at : null) : keyed.get(key);
    if (!old || old.nodeName !== node.nodeName) {
      parent.insertBefore(node, at);
      continue;
    }
    if (old === at) at = at.nextSibling;
    else parent.insertBefore(old, at);
    change(old, node);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function change(old, node) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== node.data) old.data = node.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!node.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of node.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  old.onclick = node.onclick;
  fill(old, ...node.childNodes);
}
