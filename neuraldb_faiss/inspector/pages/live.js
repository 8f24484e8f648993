"use strict";
(() => {
  const LIGHTS = { green: "●", yellow: "◐", red: "○" };
  const $ = (id) => document.getElementById(id);
  let token = null;
  let asked = null; // the prompt last looked at
  let looks = 0;
  let searches = 0;
  let database = null; // which one is shown; null before the first answer
  let page = 1;
  let pages = 1;
  let light = null; // only facts with this light

  function make(name, text, attributes = {}) {
    const made = document.createElement(name);
    if (text !== null) made.textContent = text; // never as HTML
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  let clearing;
  function say(text, passing = false) {
    clearTimeout(clearing);
    $("status").textContent = text;
    if (text) $("problem").textContent = "";
    if (passing) clearing = setTimeout(() => { $("status").textContent = ""; }, 6000);
  }

  function complain(error) {
    say("");
    $("problem").textContent = error.message;
  }

  async function api(method, path, body) {
    const headers = { Authorization: "Bearer " + token };
    if (database !== null) headers["X-NeuralDB"] = database;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch {
      throw new Error("The server does not answer: is the command still running?");
    }
    const told = await answer.json().catch(() => ({}));
    if (answer.status === 401) close();
    if (!answer.ok) throw new Error(told.error ? told.error.message : "The server says " + answer.status + ".");
    return told;
  }

  // ---- the token

  function close() {
    sessionStorage.removeItem("neuraldb");
    document.body.classList.add("closed");
    $("all").hidden = true;
    $("door").hidden = false;
    $("token").focus();
  }

  async function open(given) {
    token = given;
    await showAbout();
    sessionStorage.setItem("neuraldb", token);
    $("door").hidden = true;
    $("problem").textContent = "";
    $("all").hidden = false;
    document.body.classList.remove("closed");
    await Promise.all([showFacts(), showHistory()]);
  }

  $("databases").addEventListener("change", () => {
    database = $("databases").value;
    page = 1;
    light = null;
    asked = null;
    looks += 1; // what was asked of the other database is not shown
    $("search").value = "";
    $("delivery").value = "";
    document.querySelector(".page").scrollTo(0, 0);
    $("result").replaceChildren();
    $("result").classList.remove("busy");
    $("gate-result").replaceChildren();
    $("measure").textContent = "Measure";
    say("");
    Promise.all([showAbout(), showFacts(), showHistory()]).catch(complain);
  });

  async function showAbout() {
    const about = await api("GET", "inspect/about");
    database = about.database;
    $("name").textContent = about.name;
    document.title = about.name + " · NeuralDB";
    const several = about.databases.length > 1;
    $("name").classList.toggle("hidden", several);
    $("databases").hidden = !several;
    $("databases").replaceChildren(...about.databases.map((one) => make("option", one.name === "db" ? one.label : one.name, { value: one.name })));
    $("databases").value = database;
    const facts = about.facts.toLocaleString("en") + (about.facts === 1 ? " fact" : " facts");
    const where = about.layer === null ? "facts are stated, none fires" : "layer " + about.layer + ", guard " + about.guard;
    $("about").textContent = ["generation " + about.generation, facts, about.model, where, "delivery " + about.delivery].join(" · ");
    $("gamma").hidden = about.layer === null;
    $("gamma").textContent = "γ " + about.gamma + " (what is that?)";
    $("gate-part").hidden = about.layer === null;
    $("chat-label").hidden = !about.chat;
    for (const option of $("delivery").options) {
      if (option.value === "") option.textContent = "the database’s own (" + about.delivery + ")";
      else option.disabled = option.value !== "text" && !about.residuals;
    }
    showTest(about.test);
  }

  function showTest(test) {
    $("tested").hidden = test === null;
    if (test === null) return;
    $("tested-about").textContent = "Last test: " + new Date(1000 * test.time).toLocaleDateString() + ", delivery " + test.delivery + " (" + test.file + ")";
    $("tested").querySelector(".lights").replaceChildren(...Object.keys(LIGHTS).map((name) => {
      const button = make("button", null, { type: "button", class: "light", "aria-pressed": String(light === name) });
      button.append(make("span", LIGHTS[name], { class: name, "aria-hidden": "true" }), " " + test[name] + " " + name);
      button.addEventListener("click", () => {
        light = light === name ? null : name;
        page = 1;
        showTest(test);
        showFacts().catch(complain);
      });
      return button;
    }));
  }

  // ---- a prompt

  async function look(prompt, quiet = false) {
    const mine = ++looks;
    asked = prompt;
    $("result").classList.add("busy");
    if (!quiet) say("Looking …");
    try {
      const body = { prompt, max_tokens: Number($("length").value) || 20, chat: $("chat").checked, delivery: $("delivery").value || null };
      const told = await api("POST", "inspect/look", body);
      if (mine !== looks) return;
      $("result").innerHTML = told.html; // made and escaped by the server
      if (!quiet) say(told.summary, true);
    } catch (error) {
      if (mine === looks) complain(error);
    } finally {
      if (mine === looks) $("result").classList.remove("busy");
    }
  }

  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    look($("prompt").value);
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask-form").requestSubmit();
  });

  $("measure").addEventListener("click", async () => {
    $("measure").disabled = true;
    say("Measuring …");
    try {
      $("gate-result").innerHTML = (await api("GET", "inspect/cosines")).html; // as above
      $("measure").textContent = "Measure again";
      say("Measured.", true);
    } catch (error) {
      complain(error);
    } finally {
      $("measure").disabled = false;
    }
  });

  // ---- facts

  function text(fact) {
    return fact.prompt.includes("{}") ? fact.prompt.replace("{}", () => fact.subject) : fact.prompt;
  }

  function button(words, about, does, kind = "quiet") {
    const made = make("button", words, { type: "button", class: kind, "aria-label": words + " " + about });
    made.addEventListener("click", does);
    return made;
  }

  function factItem(fact) {
    const item = make("li", null, { "data-id": fact.id });
    const line = make("p", null, { class: "fact" });
    if (fact.test !== null) line.append(make("span", LIGHTS[fact.test.light], { class: "dot " + fact.test.light, role: "img", "aria-label": fact.test.light, title: "last test: " + fact.test.light }), " ");
    line.append(text(fact) + " ", make("span", "→", { class: "arrow", role: "img", "aria-label": "is answered with" }), "\u00a0",
      make("b", fact.target, { class: "target" }));
    const known = ["generation " + fact.made, fact.sources.join(", "), fact.state === "live" ? "" : fact.state + ": does not fire until it is solved",
      fact.took === false ? "not said by the model" : ""].filter(Boolean);
    const does = make("div", null, { class: "does" });
    const name = text(fact) + " " + fact.target;
    does.append(
      button("Look", "at " + text(fact), () => {
        $("prompt").value = text(fact);
        $("ask").scrollIntoView();
        look($("prompt").value);
      }),
      button("Edit", name, () => item.replaceChildren(editForm(fact, item))),
      button("Delete", name, async () => {
        if (!await sure("Delete this fact?", text(fact) + " → " + fact.target + ". The history keeps it: a rollback brings it back.", "Delete", "danger")) return;
        await change("Deleting …", "DELETE", "facts/" + encodeURIComponent(fact.id));
        $("search").focus();
      }, "quiet danger"));
    const below = make("div", null, { class: "below" });
    below.append(make("p", known.join(" · "), { class: "soft", title: known.join(" · ") + " · id " + fact.id }), does);
    item.append(line, below);
    if (fact.test !== null && fact.test.problems.length) item.append(lightsOf(fact.test));
    return item;
  }

  function lightsOf(test) {
    const all = make("details", null, { class: "problems" });
    all.append(make("summary", test.good + " of " + test.asks + " answers as wanted"));
    const list = make("ul", null);
    for (const one of test.problems) {
      const item = make("li", null);
      item.append(make("b", one.problem), ": " + one.asked + " ", make("span", "⇒", { class: "arrow", role: "img", "aria-label": "was answered" }), " ", make("q", one.said));
      list.append(item);
    }
    all.append(list);
    return all;
  }

  function editForm(fact, item) {
    const form = make("form", null, { class: "edit", "aria-label": "Edit " + text(fact) });
    const field = (words, value, most) => {
      const label = make("label", words);
      const input = make("input", null, { required: "", maxlength: most, autocomplete: "off" });
      input.value = value;
      label.append(input);
      form.append(label);
      return input;
    };
    const prompt = field("Prompt about " + fact.subject, fact.prompt, 2000);
    const target = field("Answer", fact.target, 500);
    const line = make("div", null, { class: "line" });
    const save = make("button", "Save", { class: "main" });
    const leave = () => {
      const back = factItem(fact);
      item.replaceWith(back);
      back.querySelectorAll("button")[1].focus();
    };
    line.append(save, button("Cancel", "editing", leave, ""));
    form.append(line);
    form.addEventListener("keydown", (event) => { if (event.key === "Escape") leave(); });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (prompt.value === fact.prompt && target.value === fact.target) return leave();
      save.disabled = true;
      const done = prompt.value === fact.prompt ? change("Solving …", "POST", "facts", [updated(fact, target.value)])
        : change("Solving …", "PATCH", "facts/" + encodeURIComponent(fact.id), { prompt: prompt.value, target: target.value });
      if (!await done) save.disabled = false;
    });
    setTimeout(() => target.focus());
    return form;
  }

  function updated(fact, target) {
    const { id, subject, prompt, target_true, relation, source } = fact;
    const metadata = { ...fact.metadata };
    if (!String(metadata.statement || "{target}").includes("{target}")) delete metadata.statement; // it says the old one
    const known = Object.entries({ id, subject, prompt, target, target_true, relation, source, metadata });
    return Object.fromEntries(known.filter(([, value]) => value !== undefined && value !== null));
  }

  async function showFacts(holding = null) {
    const mine = ++searches;
    const wanted = $("search").value.trim();
    const query = new URLSearchParams({ page, order: $("order").value });
    if (wanted) query.set("contains", wanted);
    if (light !== null) query.set("light", light);
    if (holding !== null) query.set("holding", holding);
    const told = await api("GET", "inspect/facts?" + query);
    if (mine !== searches) return told;
    page = told.page;
    pages = told.pages;
    $("facts").replaceChildren(...told.data.map(factItem));
    $("before").disabled = page <= 1;
    $("behind").disabled = page >= pages;
    $("pages").hidden = told.total < 2;
    const first = (page - 1) * told.size + 1;
    const which = first.toLocaleString("en") + "–" + (first + told.data.length - 1).toLocaleString("en");
    const some = wanted ? " found" : light !== null ? " " + light : "";
    $("found").textContent = !told.total ? (wanted ? "No fact holds “" + wanted + "”." : light !== null ? "No such fact." : "No facts yet.")
      : pages === 1 ? "All " + told.total + some
      : which + " of " + told.total.toLocaleString("en") + some + ", page " + page + " of " + pages.toLocaleString("en");
    return told;
  }

  async function turn(to) {
    page = to;
    await showFacts();
    $("facts-part").scrollIntoView();
  }

  let typing;
  $("search").addEventListener("input", () => {
    clearTimeout(typing);
    page = 1;
    typing = setTimeout(() => showFacts().catch(complain), 200);
  });
  $("order").addEventListener("change", () => { page = 1; showFacts().catch(complain); });
  $("search-form").addEventListener("submit", (event) => event.preventDefault());
  $("before").addEventListener("click", () => turn(page - 1).catch(complain));
  $("behind").addEventListener("click", () => turn(page + 1).catch(complain));
  $("pages").addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = $("jump").value.trim();
    if (!wanted) return;
    try {
      if (/^\d+$/.test(wanted) && Number(wanted) >= 1 && Number(wanted) <= pages) return await turn(Number(wanted));
      const told = await showFacts(wanted);
      const found = [...$("facts").children].find((item) => item.dataset.id === wanted);
      if (!found) throw new Error("No fact here has the id “" + wanted + "”, and there are " + told.pages + " pages.");
      found.classList.add("wanted");
      found.scrollIntoView({ block: "center" });
      say("On page " + page + ".", true);
    } catch (error) {
      complain(error);
    }
  });

  $("add-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const fact = { subject: $("subject").value, prompt: $("template").value, target: $("target").value, source: "inspector" };
    const button = $("add-form").querySelector("button");
    button.disabled = true;
    $("solving").hidden = false;
    const done = await change("Solving …", "POST", "facts", [fact]);
    $("solving").hidden = true;
    button.disabled = false;
    if (!done) return;
    for (const id of ["subject", "template", "target"]) $(id).value = "";
    $("subject").focus();
  });

  // ---- changes: a job is made, and followed to its end

  async function change(doing, method, path, body) {
    try {
      say(doing);
      let job = await api(method, path, body);
      while (job.state === "queued" || job.state === "running") {
        await new Promise((go) => setTimeout(go, 300));
        job = await api("GET", "jobs/" + job.id);
      }
      if (job.state === "failed") throw new Error(job.error);
      await Promise.all([showAbout(), showFacts(), showHistory()]);
      if (asked !== null) await look(asked, true);
      const untaken = job.untaken.length ? " The model still does not say it: try another prompt." : "";
      say("Done: generation " + job.generation + "." + untaken, !untaken);
      return true;
    } catch (error) {
      complain(error);
      return false;
    }
  }

  function sure(title, about, yes, kind = "main") {
    $("sure-yes").className = kind;
    $("sure-title").textContent = title;
    $("sure-text").textContent = about;
    $("sure-yes").textContent = yes;
    $("sure").returnValue = "no";
    $("sure").showModal();
    return new Promise((tell) => {
      $("sure").addEventListener("close", () => tell($("sure").returnValue === "yes"), { once: true });
    });
  }

  // ---- history

  async function showHistory() {
    const told = await api("GET", "inspect/history");
    $("history").replaceChildren(...told.data.map((one) => {
      const item = make("li", null);
      const about = make("div", null);
      const counts = [[one.added, "+"], [one.updated, "~"], [one.removed, "−"]].filter(([n]) => n)
        .map(([n, sign]) => sign + n.toLocaleString("en"));
      about.append(make("p", one.generation + " · " + one.command), make("p",
        [new Date(one.time).toLocaleString(), ...counts, one.facts.toLocaleString("en") + (one.facts === 1 ? " fact" : " facts")]
          .join(" · "), { class: "soft" }));
      item.append(about);
      if (one.generation === told.generation) {
        item.append(make("span", "now", { class: "now" }));
      } else if (one.kept) {
        const back = make("button", "Roll back", { class: "quiet", "aria-label": "Roll back to generation " + one.generation });
        back.addEventListener("click", async () => {
          const what = "A new generation is made that equals generation " + one.generation + " (" +
            one.facts.toLocaleString("en") + " facts). Nothing is lost: this one can be rolled back to as well.";
          if (!await sure("Roll back to generation " + one.generation + "?", what, "Roll back")) return;
          await change("Rolling back …", "POST", "inspect/rollback", { generation: one.generation });
        });
        item.append(back);
      }
      return item;
    }));
  }

  // ---- start: the token comes behind the address, and does not stay there

  $("door").addEventListener("submit", (event) => {
    event.preventDefault();
    open($("token").value.trim().replace(/^.*token=/, "")).catch(complain);
  });
  function start() {
    const brought = new URLSearchParams(location.hash.slice(1)).get("token");
    if (brought) history.replaceState(null, "", location.pathname);
    const known = brought || sessionStorage.getItem("neuraldb");
    if (known) open(known).catch((error) => { complain(error); if ($("all").hidden) $("door").hidden = false; });
    else close();
  }
  window.addEventListener("hashchange", () => { if (location.hash.startsWith("#token=")) start(); });
  start();
})();
