// What these pages list changes while one looks at other tabs: who comes back to one sees the present.
addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") location.replace(location.pathname);
});
