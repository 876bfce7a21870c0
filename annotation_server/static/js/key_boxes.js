// Boxes that take a key press as their value, on the page of one's own preferences. Without this script one types the
// key's name, as KeyboardEvent.key has it.

const LEFT_ALONE = new Set(["Tab", "Escape", "Shift", "Control", "Alt", "AltGraph", "Meta", "CapsLock", "Dead", "Process", "Unidentified"]);

document.addEventListener("keydown", (event) => {
  if (!event.target.matches("[data-key-box]") || LEFT_ALONE.has(event.key)) return;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  event.target.value = event.key === " " ? "Space" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
});
