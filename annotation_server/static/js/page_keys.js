// Keys of a page of buttons: what carries data-key is clicked, data-focus-key focused, data-open-key unfolded.
// Letters toggle the candidates' boxes. While somebody types only Escape and Ctrl with data-while-typing mean anything.
// Not here: the annotating page, whose keys each person may change.

const typing = (target) => target.matches("textarea, select, input:not([type=checkbox], [type=radio])");
const named = (attribute, key) =>
  [...document.querySelectorAll(`[${attribute}]`)].find((found) => found.getAttribute(attribute) === key);

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.altKey || event.metaKey) return;
  if (event.key === "Escape" && typing(event.target)) {
    event.target.blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const clicked = named("data-key", key);
  if (event.ctrlKey || typing(event.target)) {
    if (!event.ctrlKey || !clicked?.hasAttribute("data-while-typing")) return;
    event.preventDefault();
    clicked.click();
    return;
  }
  const box =
    key === "n"
      ? document.querySelector("input[name=none]")
      : document.querySelector(`input[name=letters][value="${CSS.escape(key.toUpperCase())}"]`);
  const focused = named("data-focus-key", key);
  const opened = named("data-open-key", key);
  if (clicked && !clicked.hasAttribute("data-while-typing")) clicked.click();
  else if (focused) focused.focus();
  else if (opened) {
    opened.open = true;
    opened.querySelector("textarea").focus();
  } else if (box) {
    box.click(); // says so to whoever shows what is chosen
    document.querySelectorAll("details[data-open-key]").forEach((details) => (details.open = true));
  } else return;
  event.preventDefault();
});

// "None" and letters exclude each other.
document.addEventListener("change", (event) => {
  if (!event.target.matches("input[name=letters], input[name=none]") || !event.target.checked) return;
  const others = event.target.name === "none" ? "input[name=letters]" : "input[name=none]";
  document.querySelectorAll(others).forEach((other) => (other.checked = false));
});
