// Keys of the reviewer tab. They press what is on the page, so nothing can be done by key that cannot be done by Tab and Space.
() => {
  document.documentElement.lang = "zh-CN";
  const at = id => document.getElementById(id);
  const radios = id => [...at(id).querySelectorAll("input[type=radio]")];
  const press = id => at(id)?.checkVisibility() && (at(id).matches("button") ? at(id) : at(id).querySelector("button"))?.click();
  const typing = target => target.matches("textarea, select, [contenteditable=true]")
    || (target.matches("input") && target.type !== "radio");

  function move(by) {
    const cases = radios("x-queue"), open = cases.findIndex(radio => radio.checked);
    const next = cases[Math.min(Math.max(open + by, 0), cases.length - 1)];
    if (next && !next.checked) { next.click(); next.focus(); next.closest("label").scrollIntoView({ block: "nearest" }); }
  }

  function category() {
    const all = radios("x-category");
    (all.find(radio => radio.checked) ?? all[0])?.focus();
  }

  document.addEventListener("keydown", event => {
    if (event.key === "Enter" && event.target.closest("#x-token")) setTimeout(() => event.target.blur());  // the keys work at once
    if (!at("x-work")?.checkVisibility() || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = event.target, key = event.key;
    if (typing(target)) { if (key === "Escape") target.blur(); return; }
    const chooses = target.matches("input[type=radio]") && !target.closest("#x-queue");  // its arrows are the browser's
    if (key === "j" || (key === "ArrowDown" && !chooses)) move(1);
    else if (key === "k" || (key === "ArrowUp" && !chooses)) move(-1);
    else if (/^[1-9]$/.test(key)) { const radio = radios("x-verdict")[key - 1]; radio?.click(); radio?.focus(); }
    else if (key === "c") category();
    else if (key === "n") at("x-note").querySelector("textarea").focus();
    else if (key === "t") press("x-triage");
    else if (key === "r") press("x-refresh");
    else if (key === "Enter" && !target.matches("button, a, summary, [role=tab]")) press("x-vote");
    else return;
    event.preventDefault();
  });
}
