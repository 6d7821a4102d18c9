// Elements from data: text is always text, never markup.

/** An element with properties, listeners (`onclick`) and children; a child is a node or text. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The element of this id. */
export const byId = (id) => document.getElementById(id);

/** A labelled control. */
export const labelled = (text, control) => element("label", {}, element("span", {}, text), control);

/** What a call was refused with, for people. */
export async function refusal(answer) {
  const text = await answer.text();
  try {
    const problem = JSON.parse(text);
    const details = (problem.errors ?? []).map((fault) => `${fault.pointer}: ${fault.detail}`);
    return [problem.error ?? text, problem.detail, ...details].filter(Boolean).join(" · ");
  } catch {
    return text || `${answer.status}`;
  }
}
