from django.db import migrations, models
from django.db.models import Exists, OuterRef, Q


def see_who_is_asking(apps, schema_editor):
    slots = apps.get_model("tasks", "Slot").objects.filter(task=OuterRef("pk")).exclude(state="done")
    apps.get_model("tasks", "Task").objects.filter(~Exists(slots)).update(asking=False)


class Migration(migrations.Migration):
    dependencies = [("tasks", "0003_cursor_empty_until")]

    operations = [
        migrations.AddField(
            model_name="task",
            name="asking",
            field=models.BooleanField(
                default=True, help_text="Some slot is unfilled. Set with the state, by settling."
            ),
        ),
        migrations.RunPython(see_who_is_asking, migrations.RunPython.noop),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(
                condition=Q(("asking", True), Q(("state", "open"), _negated=True)),
                fields=["project", "id"],
                name="task_still_asking",
            ),
        ),
    ]
