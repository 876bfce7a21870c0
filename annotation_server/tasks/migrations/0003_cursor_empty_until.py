from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("tasks", "0002_workbench")]

    operations = [
        migrations.AddField(
            model_name="queuecursor",
            name="empty_until",
            field=models.DateTimeField(
                help_text="The whole queue had nothing for them: not walked again before then.", null=True
            ),
        ),
    ]
