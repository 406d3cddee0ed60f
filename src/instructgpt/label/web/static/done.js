// After handing in: Enter goes on to the next task.

document.getElementById("next")?.focus({ preventScroll: true });
