// What every page needs: say so when the server cannot be reached. Not here: the annotating page (annotate.js).

const notice = document.getElementById("connection-notice");

function show(message) {
  if (!notice) return;
  notice.textContent = message;
  notice.hidden = false;
}

document.addEventListener("htmx:sendError", () => show(notice.dataset.unreachable));
document.addEventListener("htmx:responseError", (event) => {
  // A job's progress may end in 404 when its object was deleted meanwhile: the page itself then says more on reload.
  show(`${notice.dataset.refused} (${event.detail.xhr.status})`);
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful && notice) notice.hidden = true;
});

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => navigator.clipboard.writeText(button.dataset.copy));
}
