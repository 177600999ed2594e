// Runs before the first paint, as a classic script, so that a chosen theme doesn't flash the other one.
(() => {
  try {
    const theme = localStorage.getItem("sandlot.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage can be forbidden; then the system's theme holds.
  }
})();
