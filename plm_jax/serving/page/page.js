"use strict";

// The page at /: what the loaded models can do. It speaks to the routes of this server only.

const TABS = {
  predict: "Predict",
  fill_mask: "Fill blanks",
  generate: "Write",
  attention: "Attention",
  encode: "Neighbours",
};
const TASK_TABS = { tag: "Tag", answer: "Answer", choose: "Choose", similar: "Compare", write: "Write" };
const EXAMPLES = {
  answer: ["Where was Ada Lovelace born?", "Ada Lovelace was born in London in 1815. She wrote a program for the Analytical Engine of Charles Babbage."],
  tag: ["Ada Lovelace met Charles Babbage in London in 1833."],
  choose: ["The man opened the umbrella because", "it was raining.\nit was dark."],
};

const byId = (id) => document.getElementById(id);
let models = [];
let model = null;
let writing = null;

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

async function send(path, body, signal) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.authorization = `Bearer ${key}`;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) byId("key-form").hidden = false;
  const content = await response.json().catch(() => null);
  throw new Error(content ? content.error.message : `The server answered ${response.status}.`);
}

const ask = async (path, body) => (await send(path, { ...body, model: model.id })).json();

// --- results ------------------------------------------------------------------------------------

function bars(entries, marked = true) {
  const best = Math.max(...entries.map(([, share]) => share));
  const items = entries.map(([label, share]) => {
    const fill = element("span", { className: "fill" });
    fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    const track = element("span", { className: "track", "aria-hidden": "true" }, fill);
    const number = element("span", { className: "share" }, share.toFixed(3));
    const row = element("li", {}, element("span", {}, label), number, track);
    if (marked && share === best) row.className = "best";
    return row;
  });
  return element("ul", { className: "bars" }, ...items);
}

const ordered = (scores) => Object.entries(scores).sort((a, b) => b[1] - a[1]);

function hue(name) {
  let sum = 0;
  for (const letter of name) sum = (sum * 31 + letter.codePointAt(0)) % 9973;
  return `e${sum % 8}`;
}

// Places count characters, and JavaScript's strings have two units for some.
function highlighted(text, spans) {
  const letters = Array.from(text);
  const made = element("p", { className: "text" });
  let at = 0;
  for (const span of spans) {
    made.append(letters.slice(at, span.start).join(""));
    const mark = element("mark", { className: hue(span.type || "") }, letters.slice(span.start, span.end).join(""));
    if (span.type) mark.append(element("small", {}, span.type));
    if (span.score !== undefined) mark.title = `${span.type || "answer"}, ${span.score.toFixed(3)}`;
    made.append(mark);
    at = span.end;
  }
  made.append(letters.slice(at).join(""));
  return made;
}

function shownPrediction(made, texts) {
  if (made.entities) {
    const count = made.entities.length;
    const hint = count ? `${count} ${count > 1 ? "entities" : "entity"}` : "No entity was found.";
    return [highlighted(texts[0], made.entities), element("p", { className: "hint" }, hint)];
  }
  if ("answer" in made && made.nbest) {
    const spans = made.start === null ? [] : [{ start: made.start, end: made.end, score: made.score }];
    const parts = [highlighted(texts[1], spans)];
    if (!spans.length) parts.push(element("p", { className: "hint" }, "The text has no answer."));
    parts.push(element("h2", {}, "The most probable answers"));
    parts.push(bars(made.nbest.slice(0, 5).map((entry) => [entry.text, entry.score])));
    return parts;
  }
  if (made.tags) {
    const rows = made.words.map((word, i) =>
      element("tr", {}, element("th", { scope: "row" }, word), element("td", {}, made.tags[i])));
    return [element("table", { className: "words" }, ...rows)];
  }
  if (Array.isArray(made.scores) && "choice" in made) {
    return [bars(made.scores.map((score, i) => [texts[i + 1], score]))];
  }
  if (made.scores && !Array.isArray(made.scores)) return [bars(ordered(made.scores))];
  if ("output" in made) return [element("p", { className: "text grown" }, made.output)];
  for (const name of ["value", "similarity"]) {
    if (name in made) return [element("p", { className: "value" }, String(made[name])), element("p", { className: "hint" }, name)];
  }
  return [element("pre", {}, JSON.stringify(made, null, 2))];
}

// --- panels -------------------------------------------------------------------------------------

const panels = {
  async predict() {
    const fields = [...byId("fields").querySelectorAll("textarea")].map((field) => field.value);
    const texts = model.task === "choose" ? [fields[0], ...fields[1].split("\n").filter((line) => line.trim())] : fields;
    const answer = await ask("/predict", { inputs: texts.length > 1 ? [texts] : texts });
    return shownPrediction(answer.predictions[0], texts);
  },

  async fill_mask() {
    const text = byId("blank-text").value;
    const { fillers } = await ask("/fill_mask", { inputs: text });
    const parts = [];
    const pieces = text.split("[MASK]");
    const filled = element("p", { className: "text" }, pieces[0]);
    fillers[0].forEach((blank, i) => filled.append(element("mark", {}, blank[0].token), pieces[i + 1] || ""));
    parts.push(filled);
    fillers[0].forEach((blank, i) => {
      parts.push(element("h2", {}, fillers[0].length > 1 ? `Blank ${i + 1}` : "The most probable words"));
      parts.push(bars(blank.map((entry) => [entry.token, entry.probability])));
    });
    return parts;
  },

  async generate(result) {
    const number = (id) => Number(byId(id).value);
    const body = { prompt: byId("prompt").value, temperature: number("temperature"), max_length: number("max_length"), seed: number("seed"), stream: true, model: model.id };
    if (body.temperature > 0) body.top_p = number("top_p");
    writing = new AbortController();
    byId("stop").disabled = false;
    const given = element("span", { className: "given" });
    const grown = element("span");
    const hint = element("p", { className: "hint" });
    try {
      const response = await send("/generate", body, writing.signal);
      result.replaceChildren(element("p", { className: "text grown" }, given, grown), hint);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      let first = true;
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          const message = JSON.parse(event.slice("data: ".length));
          if (message.error) throw new Error(message.error.message);
          (first ? given : grown).append(message.text || "");
          first = false;
          if (message.done) hint.textContent = `${message.tokens} tokens`;
        }
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      hint.textContent = "Stopped.";
    } finally {
      byId("stop").disabled = true;
      writing = null;
    }
    return null;
  },

  async attention() {
    const numbers = { layer: Number(byId("layer").value), head: Number(byId("head").value) };
    const { tokens, weights, layers, heads } = await ask("/attention", { input: byId("attention-text").value, ...numbers });
    byId("layer").max = layers;
    byId("head").max = heads;
    const buttons = tokens.map((token) => element("button", { type: "button", "aria-pressed": "false" }, token));
    const hint = element("p", { className: "hint" });
    const choose = (chosen) => {
      const most = Math.max(...weights[chosen]);
      buttons.forEach((button, i) => {
        const weight = weights[chosen][i];
        button.style.setProperty("--weight", weight / most);
        button.toggleAttribute("data-strong", weight > 0.6 * most);
        button.setAttribute("aria-pressed", String(i === chosen));
        button.title = weight.toFixed(3);
      });
      const best = weights[chosen].map((weight, i) => [weight, tokens[i]]).sort((a, b) => b[0] - a[0]).slice(0, 3);
      hint.textContent = `“${tokens[chosen]}” reads from ${best.map(([weight, token]) => `“${token}” ${weight.toFixed(2)}`).join(", ")}. Choose another token.`;
    };
    buttons.forEach((button, i) => button.addEventListener("click", () => choose(i)));
    choose(Math.min(1, tokens.length - 1));
    return [element("div", { className: "tokens" }, ...buttons), hint, heatmap(weights, numbers)];
  },

  async encode() {
    const lines = byId("lines").value.split("\n").filter((line) => line.trim());
    const { vectors } = await ask("/encode", { inputs: [byId("query").value, ...lines] });
    const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b) || 1);
    const near = lines.map((line, i) => [line, cosine(vectors[0], vectors[i + 1])]);
    return [bars(near.sort((a, b) => b[1] - a[1])), element("p", { className: "hint" }, "Cosines of the vectors, the nearest first.")];
  },
};

function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

function heatmap(weights, { layer, head }) {
  const size = weights.length;
  const canvas = element("canvas", { width: size, height: size, role: "img", "aria-label": `All weights of layer ${layer}, head ${head}: a row for each token, a column for each token that it reads from` });
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).getPropertyValue("--accent");
  const most = Math.max(...weights.flat());
  weights.forEach((row, y) => row.forEach((weight, x) => {
    context.globalAlpha = weight / most;
    context.fillRect(x, y, 1, 1);
  }));
  return canvas;
}

async function submit(name, panel) {
  const result = panel.querySelector(".result");
  const button = panel.querySelector("button[type=submit]");
  result.setAttribute("aria-busy", "true");
  button.disabled = true;
  try {
    const parts = await panels[name](result);
    if (parts) result.replaceChildren(...parts);
  } catch (error) {
    result.replaceChildren(element("p", { className: "error", role: "alert" }, error.message));
  } finally {
    result.setAttribute("aria-busy", "false");
    button.disabled = false;
  }
}

// --- models and tabs ----------------------------------------------------------------------------

function labels() {
  if (model.task === "answer") return ["Question", "Text"];
  if (model.task === "choose") return ["Beginning", "Choices, one in each line"];
  if (model.texts === 2) return ["First text", "Second text"];
  return model.texts === 3 ? ["First text", "Second text", "Third text"] : ["Text"];
}

function show(name) {
  for (const key of Object.keys(TABS)) {
    const tab = byId(`tab-${key}`);
    byId(`panel-${key}`).hidden = key !== name;
    if (tab) {
      tab.setAttribute("aria-selected", String(key === name));
      tab.tabIndex = key === name ? 0 : -1;
    }
  }
}

function tabOf(name) {
  const title = name === "predict" ? TASK_TABS[model.task] || TABS.predict : TABS[name];
  const tab = element("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}` }, title);
  tab.addEventListener("click", () => show(name));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = [...byId("tabs").children];
    const next = all[(all.indexOf(tab) + step + all.length) % all.length];
    next.focus();
    next.click();
  });
  return tab;
}

function choose(chosen) {
  model = chosen;
  const question = model.question || "";
  byId("about").textContent = question.charAt(0).toUpperCase() + question.slice(1);
  byId("max_length").max = model.max_tokens;
  byId("max_length").value = Math.min(100, model.max_tokens);
  const names = Object.keys(TABS).filter((name) => model.abilities.includes(name));
  byId("tabs").replaceChildren(...names.map(tabOf));
  const examples = EXAMPLES[model.task] || ["A fine film with a very good story.", "The story of the film is good."];
  byId("fields").replaceChildren(...labels().flatMap((label, i) => [
    element("label", { htmlFor: `field-${i}` }, label),
    element("textarea", { id: `field-${i}`, rows: i || labels().length === 1 ? 4 : 2, required: true, value: examples[i] || "" }),
  ]));
  byId("prompt-label").textContent = model.reads_source ? "A text to read" : "The beginning of a text";
  for (const name of ["layer", "head"]) {
    if (model[`${name}s`]) byId(name).max = model[`${name}s`];
  }
  for (const result of document.querySelectorAll(".result")) result.replaceChildren();
  show(names[0]);
}

async function load() {
  const notice = byId("notice");
  notice.hidden = true;
  try {
    models = (await (await send("/v1/models")).json()).data;
  } catch (error) {
    notice.textContent = error.message;
    notice.hidden = false;
    return;
  }
  byId("key-form").hidden = true;
  byId("model").replaceChildren(...models.map((each) => element("option", { value: each.id }, each.id)));
  choose(models[0]);
}

byId("model").addEventListener("change", (event) => choose(models.find((each) => each.id === event.target.value)));
byId("stop").addEventListener("click", () => writing && writing.abort());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", byId("key").value);
  load();
});
for (const name of Object.keys(TABS)) {
  const panel = byId(`panel-${name}`);
  panel.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit(name, panel);
  });
  for (const field of panel.querySelectorAll("textarea")) {
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) panel.querySelector("form").requestSubmit();
    });
  }
}
load();
