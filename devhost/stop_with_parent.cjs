// Preloaded into Azurite: ends it, as a signal would, when the process that started it is gone. The
// operating system closes the pipe to standard input however that process ended.
process.stdin.on("end", () => process.kill(process.pid, "SIGTERM"));
process.stdin.resume();
process.stdin.unref();
