"""Services, containers and batch jobs, written from templates for the machine at hand."""
