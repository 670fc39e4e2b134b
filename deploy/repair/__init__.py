"""Weight repair before quantizing: `deploy.repair.methods.repair`, and `python -m deploy.repair`."""
