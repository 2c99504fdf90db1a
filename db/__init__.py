"""What the application knows: models, CRUD, engine. No queue, no HTTP."""
