"""What is known of Linux: kernel files, where the running kernel lies, the KPTI rewrite, console logs."""
