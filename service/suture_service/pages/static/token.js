// A link may carry the token after `#`, which no browser sends. It is only filled in: whoever reads the page signs in.
addEventListener("DOMContentLoaded", () => {
  const token = location.hash.slice(1);
  if (!token) return;
  history.replaceState(null, "", location.pathname + location.search);
  document.getElementById("token").value = token;
});
