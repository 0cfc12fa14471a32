"""The rewrite of swapper_pg_dir by KPTI, driven and watched."""
