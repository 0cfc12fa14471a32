"""Analysis over snapshots: what changed, what a picture shows, what breaks a rule."""
