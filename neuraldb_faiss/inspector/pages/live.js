"use strict";
(() => {
  const PAGE = 8;
  const $ = (id) => document.getElementById(id);
  let token = null;
  let asked = null; // the prompt last looked at
  let looks = 0;
  let searches = 0;
  let total = 0;
  let next = null; // where the list of facts goes on

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
    await Promise.all([showFacts(), showHistory()]);
  }

  async function showAbout() {
    const about = await api("GET", "inspect/about");
    total = about.facts;
    $("name").textContent = about.name;
    document.title = about.name + " · neuraldb inspect";
    const facts = about.facts.toLocaleString("en") + (about.facts === 1 ? " fact" : " facts");
    $("about").textContent = ["generation " + about.generation, facts, about.model + ", layer " + about.layer,
      "γ " + about.gamma + ", guard " + about.guard].join(" · ");
    $("chat-label").hidden = !about.chat;
  }

  // ---- a prompt

  async function look(prompt, quiet = false) {
    const mine = ++looks;
    asked = prompt;
    $("result").classList.add("busy");
    if (!quiet) say("Looking …");
    try {
      const body = { prompt, max_tokens: Number($("length").value) || 20, chat: $("chat").checked };
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

  function factItem(fact) {
    const item = make("li", null);
    const line = make("p", text(fact) + " ", { class: "fact" });
    line.append(make("span", "→", { class: "arrow", role: "img", "aria-label": "is answered with" }), "\u00a0",
      make("b", fact.target, { class: "target" }));
    const known = ["generation " + fact.made, fact.sources.join(", "), fact.state === "live" ? "" : fact.state,
      fact.took === false ? "not said by the model" : ""].filter(Boolean);
    const does = make("div", null, { class: "does" });
    const seek = make("button", "Look", { class: "quiet", "aria-label": "Look at " + text(fact) });
    seek.addEventListener("click", () => {
      $("prompt").value = text(fact);
      $("ask").scrollIntoView();
      look($("prompt").value);
    });
    const remove = make("button", "Delete", { class: "quiet", "aria-label": "Delete " + text(fact) + " " + fact.target });
    remove.addEventListener("click", async () => {
      if (!await sure("Delete this fact?", text(fact) + " → " + fact.target, "Delete")) return;
      await change("Deleting …", "DELETE", "facts/" + encodeURIComponent(fact.id));
      $("search").focus();
    });
    does.append(seek, remove);
    const below = make("div", null, { class: "below" });
    below.append(make("p", known.join(" · "), { class: "soft", title: known.join(" · ") }), does);
    item.append(line, below);
    return item;
  }

  async function showFacts(after = null) {
    const mine = ++searches;
    const wanted = $("search").value.trim();
    const query = new URLSearchParams({ limit: PAGE });
    if (wanted) query.set("contains", wanted);
    if (after !== null) query.set("after", after);
    const told = await api("GET", "facts?" + query);
    if (mine !== searches) return;
    const items = told.data.map(factItem);
    if (after === null) $("facts").replaceChildren(...items);
    else $("facts").append(...items);
    if (after !== null && items.length) items[0].querySelector("button").focus();
    next = told.next;
    $("more").hidden = next === null;
    const shown = $("facts").children.length;
    const whole = wanted ? "" : " of " + total.toLocaleString("en");
    $("found").textContent = !shown ? (wanted ? "No fact holds “" + wanted + "”." : "No facts yet.")
      : next === null ? "All " + shown + (wanted ? " found" : "") : "The first " + shown + (wanted ? " found" : whole);
  }

  let typing;
  $("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => showFacts().catch(complain), 200);
  });
  $("search-form").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", () => showFacts(next).catch(complain));

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

  function sure(title, about, yes) {
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
